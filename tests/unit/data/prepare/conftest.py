"""A small data set of drawn images in four sources, with a manifest in the form that users write."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medplib.data.prepare.importer import import_manifest
from medplib.data.prepare.options import ImportOptions

COLUMNS = ("source", "modality", "image", "mask", "label", "mask_rule", "offset_left_top", "width", "height", "patient", "split", "note")


@dataclass
class Manifest:
    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "manifest.csv"

    def image(self, name: str, size=(40, 60), seed=0) -> str:
        pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.folder / name)
        return name

    def mask(self, name: str, box=(10, 20, 10, 20), size=(40, 60), low=0, high=255) -> str:
        """Box is top, bottom, left, right."""
        pixels = np.full(size, low, dtype=np.uint8)
        pixels[box[0] : box[1], box[2] : box[3]] = high
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.folder / name)
        return name

    def add(self, **columns: str) -> None:
        self.rows.append(columns)
        with self.file.open("w", newline="") as stream:
            names = [name for name in COLUMNS if any(name in row for row in self.rows)]
            writer = csv.DictWriter(stream, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    return Manifest(folder)


def fill(manifest):
    """Eight images in each of three sources: liver (+ spleen) in CT, polyp in endoscopy, nuclei (three instances each) in microscopy."""
    for i in range(8):
        left = 4 if i % 2 else 40
        ct, scope, cells = (manifest.image(f"{kind}/{i}.png", seed=100 * n + i) for n, kind in enumerate(("ct", "scope", "cells")))
        manifest.add(source="ct", modality="CT", image=ct, mask=manifest.mask(f"ct/m/{i}.png", (5, 15, left, left + 6 + i)), label="liver")
        if i < 4:
            manifest.add(source="ct", modality="CT", image=ct, mask=manifest.mask(f"ct/s/{i}.png", (20, 30, 30, 44)), label="spleen")
        polyp = manifest.mask(f"scope/m/{i}.png", (5, 15 + i, left, left + 9))
        manifest.add(source="scope", modality="endoscopy", image=scope, mask=polyp, label="polyp")
        for k in range(3):
            nucleus = manifest.mask(f"cells/m/{i}_{k}.png", (3 + 10 * k, 9 + 10 * k, 3, 9))
            manifest.add(source="cells", modality="microscopy", image=cells, mask=nucleus, label="cell_nucleus (instance)")
    return manifest


@pytest.fixture
def filled(manifest):
    return fill(manifest)


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """The filled manifest, imported once; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "own").mkdir()
    import_manifest(fill(Manifest(folder / "own")).file, folder / "data", options=ImportOptions(val_fraction=0.25))
    return folder / "data"
