"""Parameters of a stage by part, counted on a model without storage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from medplib.models.build import ModelConfig, build_model
from medplib.models.medplib import MedPLIB
from medplib.training.lora import add_lora
from medplib.training.parts import part_of
from medplib.training.stage import StageConfig
from medplib.training.trainable import choose_trained


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part, and how many of them train."""

    part: str
    total: int
    trained: int


def empty_model(stage: StageConfig, config: ModelConfig, *, vocab_size: int) -> MedPLIB:
    """The model of a stage on the meta device, adapters added and requires_grad set."""
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocab_size)
        if stage.lora is not None:
            add_lora(model, stage.lora)
        choose_trained(model, stage, seg_id=0)
    return model


def count_parameters(model: MedPLIB) -> list[PartCount]:
    """One row per part in the order of the model; adapters and token rows are parts of their own."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        part = part_of(name)
        count = totals[part]
        count[0] += parameter.numel()
        if parameter.requires_grad:
            count[1] += parameter.numel()
    return [PartCount(part, *counts) for part, counts in totals.items()]
