"""Which parameters of a model a stage trains."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medplib.errors import InputError
from medplib.models.medplib import MedPLIB
from medplib.training.assemble import TOKEN_TABLES
from medplib.training.parts import covers, part_of
from medplib.training.stage import StageConfig

TOKEN_ROWS = "token_rows"
"""Stands among the trained parts for rows of the tables of tokens."""


def choose_trained(model: MedPLIB, stage: StageConfig, *, seg_row: int) -> tuple[str, ...]:
    """Set requires_grad by part; returns the parts that train.

    Args:
        model: with the adapters of the stage added.
        stage: what trains.
        seg_row: id of `<SEG>`, whose rows `train_token_rows` means; gradients of all other rows are stopped.

    Raises:
        InputError: a part that the model does not have.
    """
    found: set[str] = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        train = any(covers(group, part) for group in stage.train) or part == "lora"
        parameter.requires_grad_(train)
        if train:
            found.add(part)
        elif stage.train_token_rows and name in TOKEN_TABLES:
            parameter.requires_grad_(True)
            parameter.register_hook(_only_row(seg_row))
            found.add(TOKEN_ROWS)
    silent = [g for g in stage.train if not any(covers(g, part) for part in found)]
    if silent:
        raise InputError(where=f"stage '{stage.name}': train", expected="parts that the model has", found=", ".join(silent))
    return tuple(sorted(found))


def cast_frozen(model: MedPLIB, dtype: torch.dtype) -> None:
    """Store what does not train in `dtype`; routers stay in float32, whatever they do."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and part_of(name) != "router":
            parameter.data = parameter.data.to(dtype)


def _only_row(row: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A gradient hook that keeps one row of a table and stops all others."""

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[row] = gradient[row]
        return kept

    return keep
