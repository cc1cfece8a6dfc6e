"""Mask previews for the training log."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from medplib.training.previews import mask_previews
from medplib.types import Letterbox


def test_preview_shows_no_mask_in_the_padding():
    """A prediction that is positive everywhere colours the image and leaves the padding black."""
    box = Letterbox.fit((192, 96), 192)
    batch = SimpleNamespace(
        sam_pixels=torch.zeros(1, 3, 192, 192, dtype=torch.uint8), names=["liver"], target_image=torch.tensor([0]),
        target_present=torch.tensor([True]), target_masks=torch.zeros(1, 192, 192, dtype=torch.uint8), letterboxes=[box],
    )  # fmt: skip
    sheet = mask_previews(batch, SimpleNamespace(mask_logits=torch.ones(1, 192, 192)))
    image = sheet[-192 - 60 :][:192]  # title above, legend below
    middle = image[40:140]
    assert middle[:, :40].max() == 0
    assert middle[:, 152:192].max() == 0
    assert (middle[:, 60:130].max(axis=2) > 0).all()
    assert mask_previews(SimpleNamespace(sam_pixels=None, names=[]), None) is None
    assert isinstance(sheet, np.ndarray)
