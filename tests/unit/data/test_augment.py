"""Augmentation: image and masks move together, and what speaks of sides is never mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medplib.data.augment import AugmentConfig, Augmenter
from medplib.data.encode import Loaded
from medplib.types import Record, Target, Turn


def _loaded(question: str, name: str) -> Loaded:
    image = np.zeros((20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), bool)
    image[4:9, 2:10], mask[4:9, 2:10] = 200, True
    record = Record(
        "r", (Path("x.png"),), (Turn("human", question), Turn("gpt", "<SEG>")), (Target(name, Path("m.png")), Target("b", None))
    )
    return Loaded((image,), (record,), ((mask, None),), ((mask,),))


@pytest.mark.parametrize(
    ("question", "name", "mirrored"),
    [
        ("Segment the lungs.", "lungs", True),
        ("Segment the left lung.", "left lung", False),
        ("Is it on the Right side?", "lesion", False),
        ("Segment it.", "lung lower lobe left", False),
        ("Is it bright?", "lesion", True),  # "right" inside a word is no side
    ],
)
def test_only_what_has_no_side_is_mirrored(question: str, name: str, mirrored: bool) -> None:
    before = _loaded(question, name)
    after = Augmenter(AugmentConfig(flip=1.0))(before, np.random.default_rng(0))
    wanted = before.images[0][:, ::-1] if mirrored else before.images[0]
    assert np.array_equal(after.images[0], wanted)
    for mask in (after.target_masks[0][0], after.region_masks[0][0]):
        assert np.array_equal(mask, after.images[0][..., 0] > 0)
    assert after.target_masks[0][1] is None


def test_masks_follow_the_image_through_every_change() -> None:
    config = AugmentConfig(rotate=25, scale=0.2, translate=0.1, flip=0.5, flip_vertical=0.5, brightness=0.1, contrast=0.1)
    augment, moved = Augmenter(config), 0
    for seed in range(20):
        before = _loaded("Segment the lungs.", "lungs")
        after = augment(before, np.random.default_rng(seed))
        mask, bright = after.target_masks[0][0], after.images[0][..., 0] > 90
        assert (mask & bright).sum() / max((mask | bright).sum(), 1) > 0.6
        moved += not np.array_equal(mask, before.target_masks[0][0])
    assert moved > 15
