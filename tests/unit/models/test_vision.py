"""What vision encoders are handed."""

from __future__ import annotations

import pytest
import timm
import torch

from medplib.config import from_dict
from medplib.models.vision import CLIP_MEAN, CLIP_STD, VisionConfig, VisionEncoder
from medplib.planning.resolve import plan_stage
from medplib.types import Letterbox
from tests.unit.planning.test_counts import ROOT, STAGE1

OTHER = {"pixel_mean": [0.5, 0.25, 0.125], "pixel_std": [0.5, 0.25, 0.2]}


@pytest.mark.parametrize(("more", "mean", "std"), [({}, CLIP_MEAN, CLIP_STD), (OTHER, OTHER["pixel_mean"], OTHER["pixel_std"])])
def test_pixels_are_normalised_by_the_statistics_of_the_encoder(more, mean, std):
    encoder = VisionEncoder(from_dict(VisionConfig, {"image_size": 64, "grid": 4, "width": 8, **more}, where="test")).eval()
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    with torch.no_grad():
        encoder(pixels, [Letterbox.fit((64, 64), 64)])
    wanted = [(value - m) / s for value, m, s in zip((0.0, 0.2, 1.0), mean, std, strict=True)]
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor(wanted), rtol=1e-6, atol=1e-6)


def test_the_timm_encoder_is_given_what_it_was_trained_with():
    vision = plan_stage([ROOT / STAGE1, ROOT / "parts/language_qwen2_5_7b.yaml", ROOT / "parts/vision_dinov2_b518.yaml"], vocab_size=None)
    found, wanted = vision.model.vision, timm.get_pretrained_cfg(vision.model.vision.name)
    assert (tuple(found.pixel_mean), tuple(found.pixel_std)) == (wanted.mean, wanted.std)
