"""Dice, IoU and surface Dice against MONAI. Apart from the unit tests because importing MONAI takes seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU, compute_surface_dice
from scipy.ndimage import gaussian_filter

from medplib.evaluation.segmentation import dice, iou, overlap
from medplib.evaluation.surface import surface_dice


def test_dice_and_iou_agree_with_monai():
    rng = np.random.default_rng(0)
    a, b = rng.random((20, 33, 41)) > 0.6, rng.random((20, 33, 41)) > 0.4
    monai_dice = DiceMetric()(torch.tensor(a[:, None]), torch.tensor(b[:, None])).squeeze(1)
    monai_iou = MeanIoU()(torch.tensor(a[:, None]), torch.tensor(b[:, None])).squeeze(1)
    ours = [overlap(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose([dice(c, empty=0.0) for c in ours], monai_dice, atol=1e-6)
    np.testing.assert_allclose([iou(c, empty=0.0) for c in ours], monai_iou, atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_surface_dice_is_that_of_monai(axes):
    rng = np.random.default_rng(axes)
    for number in range(150):
        shape = tuple(rng.integers(1, 40 if axes == 2 else 16, axes))
        first, second = (gaussian_filter(rng.standard_normal(shape), rng.uniform(0, 3)) > rng.choice([-9, 0, 0.1, 9]) for _ in range(2))
        spacing = None if number % 2 else tuple(float(step) for step in rng.choice([0.5, 0.7, 0.9765625, 1.3, 3.0], axes))
        tolerance = float(rng.choice([0, 0.5, 1, 1.4, 2, 2.1, 3, 5, 9]))
        pair = (torch.from_numpy(first)[None, None], torch.from_numpy(second)[None, None])
        expected = compute_surface_dice(*pair, [tolerance], include_background=True, spacing=spacing).item()
        found = surface_dice(first, second, tolerance=tolerance, spacing=spacing, empty=float("nan"))
        np.testing.assert_equal(np.float32(found), np.float32(expected))
