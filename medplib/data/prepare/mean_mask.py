"""The mean-mask control: how far one gets by knowing only where a named thing usually is.

Every training mask of a name is squashed to a common square and averaged; the mean, cut at the threshold that is best on train, is the
prediction for every image. A data set on which this scores high cannot show that a model looks at its images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medplib.imaging.mask import read_mask
from medplib.types import Record

_THRESHOLDS = tuple(np.arange(0.1, 0.95, 0.1).round(2))


@dataclass(frozen=True)
class NameDice:
    """Mean Dice of one name over `n` masks, with the threshold that was used; `seen` is False when train does not have the name."""

    name: str
    n: int
    dice: float
    threshold: float
    seen: bool


@dataclass(frozen=True)
class MeanMaskDice:
    """Result of the control, at original resolution. `mean` is over masks, `macro` over names. A name that train lacks scores 0."""

    grid: int
    n: int
    mean: float
    macro: float
    names: tuple[NameDice, ...]

    def lines(self) -> list[str]:
        """The result as text, for people."""
        rows = [f"  {r.name}: {r.dice:.3f} (n {r.n}, {f'threshold {r.threshold}' if r.seen else 'not in train'})" for r in self.names]
        return [f"mean-mask Dice {self.mean:.3f} over {self.n} masks, {self.macro:.3f} over {len(self.names)} names", *rows]


def mean_masks(records: Sequence[Record], grid: int = 64) -> dict[str, np.ndarray]:
    """Name -> (grid, grid) float32: share of the name's masks that cover each cell. A mask that several questions ask for counts once."""
    return {name: stack_Ngg.mean(axis=0) for name, stack_Ngg in _stacks(records, grid).items()}


def mean_mask_dice(train_records: Sequence[Record], eval_records: Sequence[Record], grid: int = 64) -> MeanMaskDice:
    """Score the mean masks of train on the masks of another part, each mask once.

    Args:
        train_records: they give mean masks and thresholds.
        eval_records: they are scored, at the original size of each mask.
        grid: side of the common square.
    """
    stacks = _stacks(train_records, grid)
    means = {name: stack_Ngg.mean(axis=0) for name, stack_Ngg in stacks.items()}
    thresholds = {name: _best_threshold(means[name], stack_Ngg) for name, stack_Ngg in stacks.items()}
    scores: dict[str, list[float]] = defaultdict(list)
    for name, path in _masks(eval_records):
        mask_HW = read_mask(path, size=None)
        scores[name].append(_dice(_predict(means[name], thresholds[name], mask_HW.shape), mask_HW) if name in means else 0.0)
    names = tuple(_row(name, scores[name], thresholds) for name in sorted(scores))
    everything = [score for values in scores.values() for score in values]
    mean = float(np.mean(everything)) if everything else float("nan")
    macro = float(np.mean([row.dice for row in names])) if names else float("nan")
    return MeanMaskDice(grid, len(everything), mean, macro, names)


def _row(name: str, scores: Sequence[float], thresholds: Mapping[str, float]) -> NameDice:
    return NameDice(name, len(scores), float(np.mean(scores)), float(thresholds.get(name, 0.0)), name in thresholds)


def _masks(records: Sequence[Record]) -> Iterator[tuple[str, Path]]:
    """(name, mask) of all present targets, each pair once, in order."""
    yield from dict.fromkeys((target.name, target.mask) for record in records for target in record.targets if target.mask is not None)


def _stacks(records: Sequence[Record], grid: int) -> dict[str, np.ndarray]:
    """Name -> (masks, grid, grid) float32 area fractions."""
    stacks: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, path in _masks(records):
        stacks[name].append(cv2.resize(read_mask(path, size=None).astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA))
    return {name: np.stack(masks) for name, masks in stacks.items()}


def _best_threshold(mean_gg: np.ndarray, stack_Ngg: np.ndarray) -> float:
    """The threshold with the highest mean Dice on the training masks, at grid resolution; of several equal ones the middle."""
    truth_NG = (stack_Ngg >= 0.5).reshape(len(stack_Ngg), -1).astype(np.float32)  # sums of whole numbers: exact
    cut_TG = (mean_gg.reshape(1, -1) >= np.reshape(_THRESHOLDS, (-1, 1))).astype(np.float32)
    overlap_NT, total_NT = truth_NG @ cut_TG.T, truth_NG.sum(axis=1, keepdims=True) + cut_TG.sum(axis=1)
    scores = np.where(total_NT > 0, 2 * overlap_NT / np.maximum(total_NT, 1), 1.0).mean(axis=0, dtype=np.float64)
    best = np.flatnonzero(np.isclose(scores, scores.max()))
    return float(_THRESHOLDS[best[len(best) // 2]])


def _predict(mean_gg: np.ndarray, threshold: float, size: tuple[int, int]) -> np.ndarray:
    """The mean mask at an image's size, cut at the threshold."""
    return cv2.resize(mean_gg, size[::-1], interpolation=cv2.INTER_LINEAR) >= threshold


def _dice(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty."""
    total = np.count_nonzero(a_HW) + np.count_nonzero(b_HW)
    return 2 * np.count_nonzero(a_HW & b_HW) / total if total else 1.0
