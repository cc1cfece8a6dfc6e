"""Low-rank adapters by peft: added before a stage, merged into plain weights after it."""

from __future__ import annotations

import re
from functools import partial

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from medplib.errors import InputError
from medplib.models.language import TOKEN_TABLES
from medplib.models.medplib import MedPLIB
from medplib.tensorfiles import StoredTensor
from medplib.training.stage import LoraOptions

ADAPTER = "default"
_ADAPTER = re.compile(r"\.lora_[AB]\.")


class AddedTo(nn.Linear):
    """Rows (T, r) and what they are added to (T, out) -> (T, out): product and sum in one call, in place of the latter."""

    def forward(self, rows_Tr: torch.Tensor, base_TO: torch.Tensor) -> torch.Tensor:
        """See the class."""
        weight_Or = self.weight.to(base_TO.dtype)
        if base_TO.device.type == "cpu" and base_TO.dtype == torch.float32 and not torch.compiler.is_compiling():
            return _AddedTo.apply(rows_Tr, weight_Or, base_TO)
        return base_TO.addmm_(rows_Tr, weight_Or.t())


class _AddedTo(torch.autograd.Function):
    """Base (T, out) + rows (T, r) by weights (out, r) transposed, in place of the base.

    Both gradients are products with the narrow side first in what comes out, (r, T) and (r, out): in float32 a CPU takes a quarter of the
    time for them that it takes the other way round, which is the one that autograd takes here.
    """

    @staticmethod
    def forward(ctx, rows_Tr: torch.Tensor, weight_Or: torch.Tensor, base_TO: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_Tr, weight_Or)
        ctx.mark_dirty(base_TO)
        return base_TO.addmm_(rows_Tr, weight_Or.t())

    @staticmethod
    def backward(ctx, grad_TO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows_Tr, weight_Or = ctx.saved_tensors
        return (weight_Or.t() @ grad_TO.t()).t(), (rows_Tr.t() @ grad_TO).t(), grad_TO


class AdaptedLinear(PeftLinear):
    """peft's linear layer with an adapter: the same weights under the same names, and fewer passes over large tensors.

    peft casts the input to the adapter's float32, multiplies what the adapter adds by its scale, then adds it: each a pass over rows of
    full width, and a backward pass keeps several of them. Here the scale is applied to rows of width r, and the sum is part of the product.
    """

    def __init__(self, base_layer: nn.Linear, adapter_name: str, **options) -> None:
        super().__init__(base_layer, adapter_name, **options)
        up = self.lora_B[adapter_name]
        added = AddedTo(up.in_features, up.out_features, bias=False, device="meta")
        added.weight = up.weight
        self.lora_B[adapter_name] = added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out); layers are called, not their weights read, so that weights split among ranks are whole when used."""
        x_TI = x.reshape(-1, x.shape[-1])
        base_TO = self.base_layer(x_TI)  # of two dimensions from the start: to change a view in place, autograd would copy all of it
        rows_Tr = self.lora_A[ADAPTER](self.lora_dropout[ADAPTER](x_TI)).to(base_TO.dtype) * self.scaling[ADAPTER]
        return self.lora_B[ADAPTER](rows_Tr, base_TO).view(*x.shape[:-1], base_TO.shape[-1])


def add_lora(model: MedPLIB, options: LoraOptions) -> None:
    """Wrap the targeted linear layers of the decoder, those inside every expert included (each expert has its own adapter)."""
    language = model.language
    if language is None:
        raise InputError(where="stage.lora", expected="a model with a language model", found="a grounder alone")
    names = [
        name
        for name, module in language.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in options.targets
    ]
    if not names:
        raise InputError(where="stage.lora.targets", expected="names of linear layers", found=", ".join(options.targets))
    adapt(language.model, names, options)


def adapt(module: nn.Module, names: list[str], options: LoraOptions) -> None:
    """Wrap the linear layers of `module` that are called `names`."""
    config = LoraConfig(r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none")
    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)


def merged(state: dict[str, torch.Tensor], options: LoraOptions | None, *, rows: tuple[int, ...] = ()) -> dict[str, StoredTensor]:
    """Weights of a model in training -> weights under plain names: every adapter folded into its layer (in float32) when it is read, token
    rows put into their tables.

    Args:
        state: name -> tensor; names as peft gives them.
        options: of the adapters; None = there are none.
        rows: tokens whose rows are parameters of their own.
    """
    state, plain = _with_rows(state, rows), {}
    if options is None:
        return {name: StoredTensor.of(tensor) for name, tensor in state.items()}
    for name, tensor in state.items():
        if _ADAPTER.search(name):
            continue
        before, base, after = name.partition(".base_layer.")
        if not base or after != "weight":
            plain[f"{before}.{after}" if base else name] = StoredTensor.of(tensor)
            continue
        down, up = (state[f"{before}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
        folded = partial(_folded, tensor, down, up, options.alpha / options.r)
        plain[f"{before}.{after}"] = StoredTensor(tensor.dtype, tuple(tensor.shape), folded)
    return plain


def _with_rows(state: dict[str, torch.Tensor], rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
    whole = {name: tensor for name, tensor in state.items() if not name.startswith("language.rows.")}
    for table, kind in zip(TOKEN_TABLES, ("embedding", "head"), strict=True) if rows else ():
        whole[table] = whole[table].clone()
        whole[table][list(rows)] = state[f"language.rows.{kind}.weight"].to(whole[table])
    return whole


def _folded(base: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    return (base.float() + scale * (up.float() @ down.float())).to(base.dtype)
