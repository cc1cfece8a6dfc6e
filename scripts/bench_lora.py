"""Rows of scripts/bench.py about experts with LoRA: an adapter in every expert beside one dense MLP with an adapter of peft."""

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import MIXTURE_REPEATS, Row, dense_mlp, interleaved, median_ratio, mixture, run_backward, starting
from bench_sizes import sizes
from torch import nn

from medplib.training.lora import adapt
from medplib.training.stage import LoraOptions


def lora_rows(device: str, *, tokens: int | None = None, experts: tuple[int, ...] = (2, 8), repeats: int = MIXTURE_REPEATS) -> list[Row]:
    """Forward and backward with frozen experts and trained adapters of rank 8 in all their matrices."""
    size, dense = sizes(device), adapted(dense_mlp(device))
    tokens = tokens or size.tokens
    x = torch.randn(1, tokens, size.width, device=device, dtype=size.dtype, requires_grad=True)
    rows = []
    for count in experts:
        layer, routing = mixture(count, device)
        adapted(layer)
        routing.forced = 0
        assert torch.equal(layer(x), next(iter(layer.experts.values()))(x)), "a forced expert is not its MLP"
        routing.forced = None
        runs = {"mixture": run_backward(layer, x, starting(routing, device, tokens)), "dense": run_backward(dense, x)}
        ratio, details = median_ratio(interleaved(runs, device=device, repeats=repeats), "mixture", "dense")
        name = f"mixture of {count} with LoRA in every expert over dense MLP with LoRA, equal arithmetic"
        target, stretch = (1.08, 1.03) if count == 2 else (1.15, 1.1)
        rows.append(Row(f"a{count}_lora", name, ratio, "LlamaMLP + peft", 1.0, target, stretch, True, details))
    return rows


def adapted(module: nn.Module) -> nn.Module:
    """The module with adapters, which alone (and the router) are trained."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name.endswith("_proj")]
    adapt(module, names, LoraOptions(r=8, alpha=16, dropout=0.0))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name or "router" in name)
        if "lora_B" in name:  # zero at first, which would make the backward of A trivial
            nn.init.normal_(parameter, std=0.02)
    return module.train()
