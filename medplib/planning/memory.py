"""Bytes per rank of one training step, by strategy and number of ranks. GiB = 2^30 bytes.

Weights, gradients and optimiser states are counted exactly. Activations are what autograd keeps (see `medplib.planning.compute`). Buffers
of communication, fragmentation and the accelerator's own context are not counted, so a verdict keeps a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medplib.planning.compute import Work

Strategy = Literal["none", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
STRATEGIES: tuple[Strategy, ...] = ("none", "ZeRO-1", "ZeRO-2", "ZeRO-3")
LAYERS = ("language layers", "routing and further experts")
MARGIN = 0.92
"""Share of an accelerator's memory that a plan may fill."""


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: all, those that train, those of the largest block that ZeRO-3 gathers at a time."""

    total: int
    trained: int
    block: int


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank."""

    strategy: Strategy
    ranks: int
    recomputed: int
    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations

    def fits(self, gib: float) -> bool:
        """Whether it fits an accelerator with `gib` GiB, with a margin."""
        return self.total <= MARGIN * gib * 2**30


def rank_memory(
    weights: Weights, works: Sequence[Work], *, strategy: Strategy, ranks: int, recomputed: int, frozen_bytes: int, layers: int
) -> RankMemory:
    """One row of the table.

    Args:
        weights: counts.
        works: of one micro-batch.
        strategy: "none" = every rank has everything, trained weights, gradients and two moments in float32; ZeRO 1, 2, 3 (DeepSpeed,
            bf16) = weights and gradients of two bytes, a float32 copy and two moments, split among ranks: optimiser, then gradients, then
            weights.
        ranks: number of them.
        recomputed: of so many of the language model's layers only the inputs are kept.
        frozen_bytes: per weight that does not train, without a strategy.
        layers: of the language model.
    """
    activations = sum(checkpointed(work, layers, recomputed).saved for work in works)
    if strategy == "none":
        stored = frozen_bytes * (weights.total - weights.trained) + 4 * weights.trained
        return RankMemory(strategy, ranks, recomputed, stored, 4 * weights.trained, 8 * weights.trained, activations)
    level = STRATEGIES.index(strategy)
    stored = 2 * weights.total / ranks + 2 * weights.block if level >= 3 else 2 * weights.total
    gradients = 2 * weights.trained / (ranks if level >= 2 else 1)
    return RankMemory(strategy, ranks, recomputed, stored, gradients, 12 * weights.trained / ranks, activations)


def fewest_recomputed(
    weights: Weights, works: Sequence[Work], *, strategy: Strategy, ranks: int, frozen_bytes: int, layers: int, gib: float
) -> int | None:
    """The fewest layers that must be computed again for a rank to fit `gib` GiB; None where even all do not do. See `rank_memory`."""
    for count in range(layers + 1):
        row = rank_memory(weights, works, strategy=strategy, ranks=ranks, recomputed=count, frozen_bytes=frozen_bytes, layers=layers)
        if row.fits(gib):
            return count
    return None


def checkpointed(work: Work, layers: int, recomputed: int) -> Work:
    """The language layers when of `recomputed` of them only the inputs are kept, and everything of one; their forward is computed twice."""
    if work.part not in LAYERS or not layers or not work.saved or not recomputed:
        return work
    share = recomputed / layers
    saved = work.inputs * recomputed + round(work.saved * (1 - share)) + work.saved // layers
    return Work(work.part, work.forward, work.backward + share * work.forward, saved, work.inputs)
