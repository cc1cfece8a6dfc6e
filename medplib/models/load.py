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


def load_model(checkpoint: Checkpoint) -> tuple[MedPLIB, PreTrainedTokenizerBase, ModelConfig]:
    """The model of a finished stage, in evaluation mode, with its tokenizer and sizes."""
    config = from_dict(ModelConfig, checkpoint.config["model"], where=f"{checkpoint.folder}/config.json: model")
    tokenizer = load_tokenizer(checkpoint.folder / TOKENIZER)
    model = build_model(config, vocab_size=len(tokenizer))
    state = checkpoint.tensors()
    check_keys(model, state, allowed=lambda name: False, where=str(checkpoint.folder))
    model.load_state_dict(state, strict=True)
    return model.eval(), tokenizer, config


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
