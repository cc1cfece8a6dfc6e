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
    """Parameters of one part, and how many of them train. Rows of token tables count as the rows they are."""

    part: str
    total: int
    trained: int
    held: int
    """How many are held by the optimiser: whole tables where single rows train."""


def empty_model(stage: StageConfig, config: ModelConfig, *, vocab_size: int) -> MedPLIB:
    """The model of a stage on the meta device, adapters added and requires_grad set."""
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocab_size)
        if stage.lora is not None:
            add_lora(model, stage.lora)
    choose_trained(model, stage, seg_row=0)
    return model


def count_parameters(model: MedPLIB, stage: StageConfig) -> list[PartCount]:
    """One row per part in the order of the model; adapters are a part of their own."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    whole = set(stage.train)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        count = totals[part]
        count[0] += parameter.numel()
        if parameter.requires_grad:
            rows_only = stage.train_token_rows and part in ("language.embeddings", "language.head") and not whole & {part, "language"}
            count[1] += parameter.shape[1] if rows_only else parameter.numel()
            count[2] += parameter.numel()
    return [PartCount(part, *counts) for part, counts in totals.items()]
