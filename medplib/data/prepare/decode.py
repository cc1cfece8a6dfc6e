"""One image of a manifest and its masks -> files of the SA-Med2D layout, and the facts that questions are made of.

Images are decoded and written again, never copied: so every file is 8-bit RGB PNG, and nothing that rode in the metadata of the original
(names, dates, places) goes along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medplib.data.prepare.manifest import ImageEntry, MaskRow
from medplib.data.prepare.options import OnEmpty
from medplib.data.sources.sa_med2d import mask_name
from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.mask import read_mask, write_mask_png
from medplib.imaging.overlay import write_png


@dataclass(frozen=True)
class Structure:
    """A named thing in an image: the file of all of it and of its instances, relative to the root, its share of the image, and the share
    of its pixels that lies in the left half of the image.
    """

    name: str
    mask: str
    files: tuple[str, ...]
    area: float
    left: float


@dataclass(frozen=True)
class ImageFacts:
    """What an import knows about one image. `absent` are the names stated not to be there; `dropped` counts empty masks left out and
    `vanished` instances that downscaling erased; sizes are (height, width).
    """

    stem: str
    image: str
    source: str
    modality: str
    anatomy: str
    patient: str
    split: str
    size: tuple[int, int]
    original_size: tuple[int, int]
    structures: tuple[Structure, ...]
    absent: tuple[str, ...]
    dropped: int
    vanished: int

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the structures."""
        return tuple(structure.name for structure in self.structures)


@dataclass(frozen=True)
class Destination:
    """Where the files of one image go and who it belongs to."""

    root: Path
    stem: str
    patient: str
    split: str
    anatomy: str
    class_ids: Mapping[str, int]


def build_image(entry: ImageEntry, to: Destination, *, max_side: int | None, on_empty: OnEmpty) -> ImageFacts:
    """Decode an image and its masks, merge instances, shrink if asked, write everything.

    Args:
        entry: rows of the manifest.
        to: destination.
        max_side: longest side in pixels of what is written; None keeps the size, smaller images are never enlarged.
        on_empty: what a mask without foreground means: an error, a mask to leave out, or that the structure is absent.

    Raises:
        InputError: naming the row: an unreadable file, a size that does not fit, an empty mask (with on_empty="error").
    """
    with _naming(entry.where):
        pixels_HW3 = read_image(entry.path).pixels
    height, width = pixels_HW3.shape[:2]
    if entry.size not in (None, (width, height)):
        raise InputError(
            where=entry.where, expected=f"{entry.relative} of {entry.size[0]} x {entry.size[1]} pixels", found=f"{width} x {height}"
        )
    size = _shrunk((height, width), max_side)
    image = f"images/{to.stem}.png"
    write_png(pixels_HW3 if size == (height, width) else cv2.resize(pixels_HW3, size[::-1], interpolation=cv2.INTER_AREA), to.root / image)
    structures, absent, dropped, vanished = [], set(entry.absent), 0, 0
    for name, rows in entry.masks.items():
        merged = _merge(name, rows, (height, width), size, to, on_empty)
        dropped, vanished = dropped + merged.dropped, vanished + merged.vanished
        if merged.structure is not None:
            structures.append(merged.structure)
        elif on_empty == "absent":
            absent.add(name)
    facts = (tuple(structures), tuple(sorted(absent)), dropped, vanished)
    return ImageFacts(to.stem, image, entry.source, entry.modality, to.anatomy, to.patient, to.split, size, (height, width), *facts)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the row of the manifest in front of an error about a file."""
    try:
        yield
    except InputError as error:
        raise InputError(where=f"{where}: {error.where}", expected=error.expected, found=error.found, remedy=error.remedy) from error


def _read(row: MaskRow, size: tuple[int, int], on_empty: OnEmpty) -> np.ndarray | None:
    """A whole-image mask, bool (H, W); None for an empty one that is to be left out."""
    with _naming(row.where):
        mask_HW = read_mask(row.path, size=size if row.offset is None else None, rule=row.rule)
    if row.offset is not None:
        mask_HW = _paste(mask_HW, row, size)
    if mask_HW.any():
        return mask_HW
    if on_empty == "error":
        raise InputError(
            where=f"{row.where}: {row.path}",
            expected=f"a mask with foreground under rule {row.rule}",
            found="an empty one",
            remedy="correct mask_rule, write 'absent' in column mask, or choose on_empty skip or absent",
        )
    return None


def _paste(patch_hw: np.ndarray, row: MaskRow, size: tuple[int, int]) -> np.ndarray:
    """A patch at its place in an empty mask of `size`."""
    (left, top), (height, width) = row.offset or (0, 0), patch_hw.shape
    if top + height > size[0] or left + width > size[1]:
        raise InputError(
            where=f"{row.where}: {row.path}",
            expected=f"a patch inside the image of {size[1]} x {size[0]} pixels",
            found=f"{width} x {height} pixels at left {left}, top {top}",
        )
    mask_HW = np.zeros(size, dtype=bool)
    mask_HW[top : top + height, left : left + width] = patch_hw
    return mask_HW


def _shrunk(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Size with the longest side at most `max_side`, aspect kept."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    return max(1, round(size[0] * max_side / longest)), max(1, round(size[1] * max_side / longest))


def _resize(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at a smaller size: a pixel is foreground when at least half of what it covers is."""
    if mask_HW.shape == size:
        return mask_HW
    return cv2.resize(mask_HW.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA) >= 128


@dataclass(frozen=True)
class _Merged:
    """The instances of one name; `structure` is None when all were empty."""

    structure: Structure | None
    dropped: int
    vanished: int


def _merge(
    name: str, rows: Sequence[MaskRow], original: tuple[int, int], size: tuple[int, int], to: Destination, on_empty: OnEmpty
) -> _Merged:
    """Write the instance masks of a name one by one, and their union where it is not one of them."""
    number = to.class_ids[name]
    union_HW = np.zeros(original, dtype=bool)
    files: list[str] = []
    dropped = 0
    for row in rows:
        mask_HW = _read(row, original, on_empty)
        if mask_HW is None:
            dropped += 1
            continue
        union_HW |= mask_HW
        small_HW = _resize(mask_HW, size)
        if small_HW.any():
            files.append(f"masks/{mask_name(to.stem, number, len(files))}")
            write_mask_png(small_HW, to.root / files[-1])
    vanished = len(rows) - dropped - len(files)
    if dropped == len(rows):
        return _Merged(None, dropped, vanished)
    union_HW = _resize(union_HW, size)
    if not union_HW.any():
        raise InputError(where=rows[0].where, expected=f"{name!r} to survive shrinking to {size[1]} x {size[0]}", found="no pixel left")
    whole = files[0] if len(files) == 1 and not vanished else f"masks_merged/{mask_name(to.stem, number, None)}"
    if whole not in files:
        write_mask_png(union_HW, to.root / whole)
    half = union_HW.shape[1] // 2
    left, right = int(union_HW[:, :half].sum()), int(union_HW[:, -half:].sum()) if half else 0
    total = int(union_HW.sum())
    middle = total - left - right  # the middle column of an odd width counts half
    return _Merged(Structure(name, whole, tuple(files), total / union_HW.size, (left + middle / 2) / total), dropped, vanished)
