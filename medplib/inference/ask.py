"""One question about one file: 2-D images and volumes slice by slice, regions pointed at, answers with masks in the input's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from medplib.data.encode import Loaded
from medplib.errors import InputError
from medplib.imaging.image import ImageData
from medplib.imaging.mask import read_mask
from medplib.imaging.rasterize import box_mask, points_mask
from medplib.imaging.volume import Plane
from medplib.inference.predictor import Prediction, Predictor
from medplib.tokens import IMAGE_TAG, REGION_END, REGION_START
from medplib.types import Record, Turn


@dataclass(frozen=True)
class RegionPrompts:
    """What the person points at; every entry is one region.

    In pixels of the image, x to the right and y down. Of a volume: of the slice in voxels, not of the enlarged sheet that is written.
    """

    points: tuple[tuple[float, float], ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    masks: tuple[Path, ...] = ()

    def rasterised(self, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """One bool mask (H, W) per region: all points together are one region, each box and each mask file another."""
        regions = [points_mask(self.points, size)] if self.points else []
        regions += [box_mask(box, size) for box in self.boxes]
        for path in self.masks:
            mask = read_mask(path, size=size)
            if not mask.any():
                raise InputError(where=path, expected="a region with at least one pixel", found="an empty mask")
            regions.append(mask)
        return tuple(regions)


@dataclass(frozen=True)
class VolumeAnswer:
    """Answers of the asked slices and, per name, the bool mask (X, Y, Z) put together from them."""

    slices: tuple[int, ...]
    predictions: tuple[Prediction, ...]
    masks: dict[str, np.ndarray]


def conversation(image: np.ndarray, question: str, regions: Sequence[np.ndarray]) -> Loaded:
    """The question as a conversation about one image (H, W, 3) uint8.

    Region tags in the question take the regions in order; without tags they are put behind it.

    Raises:
        InputError: tags and regions do not match, or the question is empty.
    """
    tag = REGION_START + REGION_END
    text = question.strip()
    if not text:
        raise InputError(where="question", expected="some words", found="nothing")
    if IMAGE_TAG in text:
        raise InputError(where="question", expected="no image tag (the image is put in front)", found=IMAGE_TAG)
    if regions and tag not in text:
        text = f"{text} {' '.join([tag] * len(regions))}"
    if text.count(tag) != len(regions):
        raise InputError(where="question", expected=f"{text.count(tag)} regions for its tags", found=str(len(regions)),
                         remedy="point with --points, --box or --region_mask")  # fmt: skip
    record = Record(id="question", images=(Path("image"),), turns=(Turn("human", f"{IMAGE_TAG}\n{text}"),))
    return Loaded((image,), (record,), ((),), (tuple(regions),))


def ask_image(predictor: Predictor, image: ImageData, question: str, prompts: RegionPrompts) -> Prediction:
    """Answer a question about a 2-D image."""
    return predictor.answer([conversation(image.pixels, question, prompts.rasterised(image.pixels.shape[:2]))])[0]


def ask_volume(
    predictor: Predictor,
    plane: Plane,
    question: str,
    prompts: RegionPrompts,
    *,
    slices: Sequence[int],
    threshold: float,
    batch_size: int = 8,
) -> VolumeAnswer:
    """Answer a question about every slice of `slices`; what has one name in several slices becomes one mask (probability > `threshold`).

    The model is shown square pixels, as in a viewer: a body whose rows lie further apart than its columns would look squashed. Regions are
    pointed at in pixels of the slice itself.
    """
    square = plane.square_shape
    regions = [resized(region, square) for region in prompts.rasterised(plane.shape)]
    predictions: list[Prediction] = []
    for start in tqdm(range(0, len(slices), batch_size), desc="slices", leave=False):
        part = [conversation(resized(plane.image(k), square), question, regions) for k in slices[start : start + batch_size]]
        predictions += predictor.answer(part)
    masks: dict[str, np.ndarray] = {}
    for k, prediction in zip(slices, predictions, strict=True):
        for found in prediction.masks:
            volume = masks.setdefault(found.name, np.zeros(plane.volume.shape, bool))
            plane.put(volume, k, plane.view(volume, k) | (resized(found.probability, plane.shape) > threshold))
    return VolumeAnswer(tuple(slices), tuple(predictions), masks)


def resized(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image or probabilities bilinearly, a bool mask by its nearest pixels; the array itself where the shape stays."""
    if array.shape[:2] == shape:
        return array
    if array.dtype == bool:
        return cv2.resize(array.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    return cv2.resize(array, shape[::-1], interpolation=cv2.INTER_LINEAR)
