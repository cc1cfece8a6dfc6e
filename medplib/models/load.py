"""A checkpoint folder -> the model that it holds, strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from medplib.config import from_dict
from medplib.errors import InputError
from medplib.lineage import TOKENIZER, Checkpoint
from medplib.models.build import ModelConfig, build_model
from medplib.models.medplib import MedPLIB
from medplib.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> tuple[MedPLIB, PreTrainedTokenizerBase, ModelConfig]:
    """The model of a finished stage, in evaluation mode, with its tokenizer and sizes.

    Weights come straight from the file: the model is built without storage first, so that nothing is held twice.

    Args:
        checkpoint: verified folder.
        dtype: of all floating-point weights except routers, which are float32; computing with bfloat16 weights needs autocast.
    """
    from accelerate import init_empty_weights

    config = from_dict(ModelConfig, checkpoint.config["model"], where=f"{checkpoint.folder}/config.json: model")
    tokenizer = load_tokenizer(checkpoint.folder / TOKENIZER)
    with init_empty_weights(include_buffers=False):
        model = build_model(config, vocab_size=len(tokenizer))
    # Copied, because a file is read in place and where its bytes lie in memory would decide the last bits of a matrix product.
    state = {name: tensor.to(_stored(name, tensor, dtype), copy=True) for name, tensor in checkpoint.tensors().items()}
    check_keys(model, state, allowed=lambda name: False, where=str(checkpoint.folder))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval(), tokenizer, config


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if ".mlp.router." in name else dtype


def check_keys(model: MedPLIB, state: dict[str, torch.Tensor], *, allowed: Callable[[str], bool], where: str) -> None:
    """Every tensor of the model is in `state` with its shape (or `allowed` to be missing) and nothing else is; else InputError."""
    own = model.state_dict()
    missing = sorted(name for name in own if name not in state and not allowed(name))
    extra = sorted(name for name in state if name not in own)
    shapes = sorted(name for name in own if name in state and own[name].shape != state[name].shape)
    for names, what in ((missing, "missing"), (extra, "left over"), (shapes, "of another shape")):
        if names:
            raise InputError(
                where=where,
                expected="every tensor of the model from exactly one parent",
                found=f"{len(names)} {what}, such as {names[0]}",
                remedy="name the parent under stage.init, or list the part under stage.init.fresh to start it at random",
            )
