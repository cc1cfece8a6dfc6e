"""Which parameters of a model a stage trains."""

from __future__ import annotations

import torch

from medplib.errors import InputError
from medplib.models.medplib import MedPLIB
from medplib.training.parts import covers, part_of
from medplib.training.stage import StageConfig

_NEEDED = {
    "conversation": ("language",),
    "contrastive": ("vision", "language", "contrast"),
    "dense": ("grounder", "names"),
    "promptable": ("grounder",),
}


def check_objective(model: MedPLIB, stage: StageConfig) -> None:
    """Refuse an objective that needs parts which the model does not have (InputError)."""
    needed = _NEEDED[stage.objective]
    if missing := [part for part in needed if getattr(model, part) is None]:
        raise InputError(
            where=f"stage '{stage.name}': objective {stage.objective}",
            expected=f"a model with {', '.join(needed)}",
            found=f"none of {', '.join(missing)}",
            remedy="name another objective, or describe the parts under `model`",
        )


def choose_trained(model: MedPLIB, stage: StageConfig, *, seg_id: int) -> tuple[str, ...]:
    """Set requires_grad by part; returns the parts that train.

    Args:
        model: with the adapters of the stage added.
        stage: what trains.
        seg_id: id of `<SEG>`, whose rows `train_token_rows` means; they become parameters of their own.

    Raises:
        InputError: a part that the model does not have.
    """
    if stage.train_token_rows:
        model.language.train_rows((seg_id,))
    found: set[str] = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        train = any(covers(group, part) for group in stage.train) or part in ("lora", "token_rows")
        parameter.requires_grad_(train)
        if train:
            found.add(part)
    silent = [g for g in stage.train if not any(covers(g, part) for part in found)]
    if silent:
        raise InputError(where=f"stage '{stage.name}': train", expected="parts that the model has", found=", ".join(silent))
    return tuple(sorted(found))


def cast_frozen(model: MedPLIB, dtype: torch.dtype) -> None:
    """Store what does not train in `dtype`; routers stay in float32, whatever they do."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and part_of(name) != "router":
            parameter.data = parameter.data.to(dtype)
