"""Rows of scripts/bench.py about metrics: mask overlap and surface Dice beside a loop over tensors and beside MONAI."""

from collections.abc import Callable, Sequence

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import numpy as np
import torch
from bench_parts import Row, interleaved, median_ratio
from monai.metrics import compute_dice, compute_surface_dice

from medplib.evaluation.segmentation import dice, iou, overlap
from medplib.evaluation.surface import surface_dice

Pair = tuple[np.ndarray, np.ndarray]


def metric_rows(device: str, *, pairs: int = 8, side: int = 256, volume_side: int = 100) -> list[Row]:
    """Pairs of masks with wavy outlines: dice and IoU of (side, side), surface Dice of the same and of volumes."""
    rng = np.random.default_rng(0)
    flat = [(blob(rng, (side, side)), blob(rng, (side, side))) for _ in range(pairs)]
    flat += [(a, np.roll(a, rng.integers(-3, 4, 2), (0, 1))) for a, _ in flat]  # answers are rarely as wrong as another blob
    solid = [(blob(rng, (volume_side,) * 3), blob(rng, (volume_side,) * 3)) for _ in range(max(1, pairs // 4))]
    tensors = [tuple(torch.from_numpy(mask) for mask in pair) for pair in flat]
    published = [(prediction.int(), target.float()) for prediction, target in tensors]
    name = "Dice and IoU of masks"
    overlaps = (
        ("i_overlap", f"{name}: the published loop (casts, logical operations, sums) over ours", "torch loop", published, _tensor_loop),
        ("i_overlap_bool", f"{name}: the same loop without casts over ours", "torch loop", tensors, _tensor_loop),
        ("i_overlap_monai", f"{name}: MONAI's Dice over ours", "compute_dice", tensors, _monai_dice),
    )
    rows = [
        _row(key, name, peer, (flat, _overlaps), (kept, theirs), target=6.0, stretch=10.0) for key, name, peer, kept, theirs in overlaps
    ]
    for key, spacing, masks in (("2d", None, flat), ("2d_mm", (0.7, 0.9), flat), ("3d_mm", (0.7, 0.7, 2.0), solid)):
        kept = [tuple(torch.from_numpy(mask) for mask in pair) for pair in masks]
        name = f"surface Dice, {key.replace('_', ', ')}, tolerance 2: MONAI over ours"
        sides = ((masks, _surface(spacing)), (kept, _monai_surface(spacing)))
        rows.append(_row(f"i_surface_{key}", name, "compute_surface_dice", *sides, target=10.0, stretch=20.0))
    return rows


def blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A wavy ellipsoid of a tenth to a quarter of the side, bool."""
    grid = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij", sparse=True)
    centre, radii = rng.uniform(0.35, 0.65, len(shape)), rng.uniform(0.1, 0.25, len(shape))
    steps = [g - c for g, c in zip(grid, centre, strict=True)]
    angle = np.arctan2(steps[-1], steps[-2])
    return sum((s / r) ** 2 for s, r in zip(steps, radii, strict=True)) < 1 + 0.3 * np.sin(3 * angle + rng.uniform(0, 6))


def _row(
    key: str, name: str, peer: str, ours: tuple[Sequence, Callable], theirs: tuple[Sequence, Callable], *, target: float, stretch: float
) -> Row:
    """Equal in float32, then timed in turns; ratio = masks per second of ours over the peer's. Each side: masks and their scorer."""
    again = 8 if key.startswith("i_overlap") else 1  # few masks, so that they stay in the cache, as masks that were just predicted do
    runs = {"peer": lambda: theirs[1](theirs[0] * again), "ours": lambda: ours[1](ours[0] * again)}
    np.testing.assert_array_equal(np.float32(runs["ours"]()), np.float32(runs["peer"]()), err_msg=f"{key}: the values differ")
    ratio, details = median_ratio(interleaved(runs, device="cpu", repeats=9), "peer", "ours")
    details["masks_per_second"] = again * len(ours[0]) / details["ours_seconds"]
    return Row(key, name, ratio, peer, float("nan"), target, stretch, False, details)


def _overlaps(masks: Sequence[Pair]) -> list[float]:
    scores = []
    for prediction, target in masks:
        counts = overlap(prediction, target)
        scores.append(dice(counts, empty=0.0))
        iou(counts, empty=0.0)
    return scores


def _tensor_loop(masks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """As published evaluations count: logical operations on tensors, one sum each."""
    scores = []
    for prediction, target in masks:
        prediction, target = prediction.bool(), target.bool()
        both, either = torch.logical_and(prediction, target).sum(), torch.logical_or(prediction, target).sum()
        share = 0.0 if either == 0 else (both.double() / either.double()).item()
        scores.append(2 * share / (1 + share))
    return scores


def _monai_dice(masks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    return [compute_dice(prediction[None, None], target[None, None]).item() for prediction, target in masks]


def _surface(spacing: tuple[float, ...] | None) -> Callable:
    return lambda masks: [surface_dice(*pair, tolerance=2.0, spacing=spacing, empty=0.0) for pair in masks]


def _monai_surface(spacing: tuple[float, ...] | None) -> Callable:
    def run(masks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
        options = {"class_thresholds": [2.0], "include_background": True, "spacing": spacing}
        return [compute_surface_dice(prediction[None, None], target[None, None], **options).item() for prediction, target in masks]

    return run
