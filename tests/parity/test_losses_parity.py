"""Mask losses and un-padding against the official code's losses and masks (random weights; data/losses)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from medplib.models.geometry import unpad_resize
from medplib.training.losses import mask_bce, mask_dice, mask_focal, mask_iou
from medplib.types import Letterbox

DATA = Path(__file__).parent / "data" / "losses"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def masks():
    return load_file(DATA / "masks.safetensors")


@pytest.mark.parametrize("model", EXPECTED)
@pytest.mark.parametrize("geometry", ["correct", "official"])
def test_losses_per_mask(masks, model, geometry):
    logits, target = masks[f"{model}.final_{geometry}_0"][0], masks[f"{model}.gt_mask_0"][None]
    valid = torch.ones_like(target, dtype=torch.bool)
    found = {
        "bce": mask_bce(logits, target, valid),
        "dice": mask_dice(logits, target, valid),
        "focal": mask_focal(logits, target, valid),
        "iou": mask_iou(logits, target, valid, masks[f"{model}.iou_pred"][0]),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(EXPECTED[model][geometry], rel=1e-5)


@pytest.mark.parametrize("model", EXPECTED)
def test_masks_at_original_size(masks, model):
    size = EXPECTED[model]["sam_size"]
    letterbox = Letterbox.fit(tuple(EXPECTED[model]["original_hw"]), size)
    full = F.interpolate(masks[f"{model}.low_res_logits"], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    (found,) = unpad_resize(full, [letterbox], torch.tensor([0]))
    torch.testing.assert_close(found, masks[f"{model}.final_correct_0"][0, 0], rtol=0, atol=1e-5)
