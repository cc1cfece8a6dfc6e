"""Dice and IoU against MONAI, an implementation of their own. Apart from the unit tests because importing MONAI takes seconds."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import DiceMetric, MeanIoU

from medplib.evaluation.segmentation import dice, iou, overlap


def test_dice_and_iou_agree_with_monai():
    rng = np.random.default_rng(0)
    a, b = rng.random((20, 33, 41)) > 0.6, rng.random((20, 33, 41)) > 0.4
    monai_dice = DiceMetric()(torch.tensor(a[:, None]), torch.tensor(b[:, None])).squeeze(1)
    monai_iou = MeanIoU()(torch.tensor(a[:, None]), torch.tensor(b[:, None])).squeeze(1)
    ours = [overlap(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose([dice(c, empty=0.0) for c in ours], monai_dice, atol=1e-6)
    np.testing.assert_allclose([iou(c, empty=0.0) for c in ours], monai_iou, atol=1e-6)
