"""Slices whose rows and columns lie differently far apart: the model sees square pixels, the mask comes back on the voxels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from medplib.imaging.nifti import read_volume
from medplib.inference.ask import RegionPrompts, ask_volume
from medplib.inference.predictor import MaskProbability


class _Thresholder:
    """Draws what is bright, at the size of the image that it is shown; remembers sizes and regions."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, int]] = set()
        self.regions: list[np.ndarray] = []

    def answer(self, loaded):
        out = []
        for item in loaded:
            self.shapes.add(item.images[0].shape[:2])
            self.regions += item.region_masks[0]
            bright = (item.images[0].mean(axis=2) / 255).astype(np.float32)
            out.append(SimpleNamespace(text="<SEG>", decisions=(), masks=(MaskProbability("block", bright, None, 0.0),)))
        return out


def _volume(path: Path, zooms: tuple[float, float, float]):
    data = np.zeros((24, 18, 12), np.float32)
    data[6:18, 3:12, 3:9] = 100
    nib.save(nib.Nifti1Image(data, np.diag([*zooms, 1.0])), path)
    return read_volume(path), data > 0


@pytest.mark.parametrize(
    ("zooms", "axis", "shown"),
    [
        ((1.0, 1.0, 3.0), "coronal", (36, 24)),
        ((1.0, 2.0, 3.0), "sagittal", (18, 18)),
        ((2.0, 2.0, 5.0), "axial", (18, 24)),
    ],
)
def test_square_pixels_in_and_voxels_out(tmp_path: Path, zooms: tuple[float, float, float], axis: str, shown: tuple[int, int]) -> None:
    volume, truth = _volume(tmp_path / "v.nii.gz", zooms)
    plane, segmenter = volume.plane(axis), _Thresholder()
    box = (0, 0, plane.shape[1], plane.shape[0] // 2)  # the upper half, in pixels of the slice
    found = ask_volume(segmenter, plane, "Segment it.", RegionPrompts(boxes=(box,)), slices=range(len(plane)), threshold=0.5)
    assert segmenter.shapes == {shown}
    assert all(region.shape == shown and 0.4 < region.mean() < 0.6 for region in segmenter.regions)
    assert found.masks["block"].shape == truth.shape
    assert 2 * (found.masks["block"] & truth).sum() / (found.masks["block"].sum() + truth.sum()) > 0.95
