"""Opens image and mask files once each and notes what an audit asks about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.mask import read_mask


@dataclass(frozen=True)
class FileFacts:
    """What was found in a file: `error` (empty when it could be read), `size` (height, width), `pixels` (hash of shape and RGB pixels of an
    image, so that the same picture in two encodings is one) and `area` (foreground share of a mask).
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: str = ""
    area: float = 0.0


def check_images(paths: Collection[Path], workers: int = 2) -> dict[Path, FileFacts]:
    """Decode images."""
    return _check(paths, _image_facts, workers)


def check_masks(paths: Collection[Path], workers: int = 2) -> dict[Path, FileFacts]:
    """Decode masks (foreground: any value above 0)."""
    return _check(paths, _mask_facts, workers)


def _check(paths: Collection[Path], facts: Callable[[Path], FileFacts], workers: int) -> dict[Path, FileFacts]:
    """Threads, because decoding and hashing release the interpreter's lock."""

    def guarded(path: Path) -> FileFacts:
        try:
            return facts(path)
        except InputError as error:
            return FileFacts(error=str(error))

    ordered = sorted(paths)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(ordered, pool.map(guarded, ordered), strict=True))


def _image_facts(path: Path) -> FileFacts:
    pixels_HW3 = np.ascontiguousarray(read_image(path).pixels)
    digest = hashlib.sha256(str(pixels_HW3.shape).encode())
    digest.update(pixels_HW3)
    return FileFacts(size=pixels_HW3.shape[:2], pixels=digest.hexdigest())


def _mask_facts(path: Path) -> FileFacts:
    mask_HW = read_mask(path, size=None)
    return FileFacts(size=mask_HW.shape, area=float(mask_HW.mean()))
