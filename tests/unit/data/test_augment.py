"""Augmentation: image and masks move together, and what speaks of sides is never mirrored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medplib.data.augment import AugmentConfig, Augmenter
from medplib.data.encode import Loaded
from medplib.data.mosaic import mosaic
from medplib.imaging.grey import from_plane, grey_plane
from medplib.types import Meta, Record, Target, Turn


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


CONFIGS = {
    "tones": AugmentConfig(brightness=0.2, contrast=0.2, gamma=0.3),
    "everything but colours": AugmentConfig(rotate=25, scale=0.2, translate=0.1, flip=0.5, flip_vertical=0.5, contrast=0.1, blur=0.5),
    "noise and colours": AugmentConfig(colour=0.5, noise=0.2, rotate=10),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_plane_is_changed_as_the_three_channels_are(config: AugmentConfig) -> None:
    before = _loaded("Segment the lungs.", "lungs")
    plane = np.random.default_rng(0).integers(0, 256, before.images[0].shape[:2], dtype=np.uint8)
    plane[0, 0] = 0
    grey = replace(before, images=(from_plane(plane),))
    barely = replace(before, images=(np.array(grey.images[0]),))  # one pixel a little coloured: changed as three channels
    barely.images[0][0, 0] = 0, 1, 0
    augment, by_plane = Augmenter(config), not (config.colour or config.noise)
    for seed in range(20):
        one, three = (augment(loaded, np.random.default_rng(seed)) for loaded in (grey, barely))
        if by_plane:
            assert (np.abs(one.images[0].astype(int) - three.images[0]) > 2).sum() <= 1  # the coloured pixel
        assert (grey_plane(one.images[0]) is not None) or not by_plane
        assert np.array_equal(one.target_masks[0][0], three.target_masks[0][0])
        assert one.target_masks[0][1] is None


def test_a_mosaic_of_grey_pictures_is_joined_as_one_plane() -> None:
    rng, halves = np.random.default_rng(0), []
    for name, shape in (("lungs", (20, 30)), ("heart", (40, 33))):
        half = _loaded(f"Segment the {name}.", name)
        record = replace(half.records[0], meta=Meta(task="grounding", source="s", present=(name,)))
        plane, mask = rng.integers(0, 256, shape, dtype=np.uint8), np.ones(shape, bool)
        plane[0, 0] = 0
        halves.append(Loaded((from_plane(plane),), (record,), ((mask, None),), ((mask,),)))
    joined = mosaic(*halves)
    assert joined.images[0].shape == (40, 60 + 33, 3)
    assert grey_plane(joined.images[0]) is not None
    coloured = [replace(half, images=(np.array(half.images[0]),)) for half in halves]
    for half in coloured:
        half.images[0][0, 0] = 0, 1, 0
    other = mosaic(*coloured).images[0]
    assert np.abs(joined.images[0].astype(int) - other).max() <= 1
