"""Sizes of the rows of scripts/bench.py: small ones that a CPU steps through in seconds, those of a 7B model on an accelerator."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Goal:
    """What a row is measured by."""

    target: float
    stretch: float


@dataclass(frozen=True)
class Sizes:
    """Sizes and goals on one kind of device; `dtype` is that of weights and of what is computed.

    Args:
        tokens, width, hidden: of the rows about one layer (mixtures of experts, cross-entropy).
        vocabulary: of the row about cross-entropy.
        layers, samples, length: of the language model whose training step is compared.
        prefix_width, prefix_layers: of the language model of the rows about a shared prefix; prefix_rows: images of a batch there.
        answers, answer_repeats: samples of the row about answers, and how often it is run.
        images: of the row about masks.
        roof: side of the matrix product that shares are shares of.
        tolerance: between outputs that must be equal but for rounding.
    """

    dtype: torch.dtype
    tokens: int
    width: int
    hidden: int
    vocabulary: int
    layers: int
    samples: int
    length: int
    prefix_width: int
    prefix_layers: int
    prefix_rows: int
    answers: int
    answer_repeats: int
    images: int
    roof: int
    tolerance: float
    mixture_32: Goal
    step: Goal
    prefix: Goal
    prefix_alone: Goal
    batched_answers: Goal
    batched_masks: Goal


CPU = Sizes(
    dtype=torch.float32, tokens=2048, width=512, hidden=1408, vocabulary=32_000, layers=4, samples=2, length=640, prefix_width=256,
    prefix_layers=4, prefix_rows=1, answers=16, answer_repeats=3, images=16, roof=1024, tolerance=1e-5, mixture_32=Goal(1.5, 1.25),
    step=Goal(0.55, 0.75),
    prefix=Goal(0.85, 0.95), prefix_alone=Goal(0.97, 0.99), batched_answers=Goal(2.5, 4.0), batched_masks=Goal(1.4, 2.0),
)  # fmt: skip
CUDA = Sizes(
    dtype=torch.bfloat16, tokens=20_480, width=4096, hidden=11_008, vocabulary=32_000, layers=8, samples=32, length=640, prefix_width=4096,
    prefix_layers=8, prefix_rows=4, answers=32, answer_repeats=2, images=32, roof=8192, tolerance=2e-2, mixture_32=Goal(1.3, 1.1),
    step=Goal(0.5, 0.63),
    prefix=Goal(0.9, 0.97), prefix_alone=Goal(0.99, 1.0), batched_answers=Goal(15.0, 30.0), batched_masks=Goal(10.0, 25.0),
)  # fmt: skip
"""Width, layers' sizes and vocabulary of Vicuna 7B, with as many layers as tell (time is linear in them)."""


def sizes(device: str) -> Sizes:
    """Those of a device."""
    return CUDA if device == "cuda" else CPU
