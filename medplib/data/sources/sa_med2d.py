"""File names of SA-Med2D-20M, in which MeCoVQA and our own imports keep images and masks.

Image: `<modality>_<kind>--<data set>--<case>--<axis>_<slice>.png` (2-D sources end in `2d_none`). Mask: the image's stem, then
`--<class id, 4 digits>_<instance, 3 digits>.png`; the union of the instances of a class is `--<class id>_merged.png`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from medplib.errors import InputError

CLASS_FILE = "SAMed2D_v1_class_mapping_id.json"
INDEX_FILE = "SAMed2D_v1.json"

_MASK_CLASS = re.compile(r"--(\d{4})_(?:\d{3,}|merged)$")


@dataclass(frozen=True)
class Stem:
    """What the name of an image tells; fields it does not tell are empty."""

    modality: str
    dataset: str
    patient: str


def parse_stem(path: Path) -> Stem:
    """Read an image's name.

    The modality is the text before the first underscore, as published scores group it (so `x_ray` counts as "x"). Of a name in another
    style the modality is taken only from a purely alphabetic first word, and every image is a patient of its own.
    """
    parts = path.stem.split("--")
    modality, separator, _ = parts[0].partition("_")
    if len(parts) >= 3:
        return Stem(modality, parts[1], f"{parts[1]}--{parts[2]}")
    return Stem(modality if separator and modality.isalpha() else "", "", path.stem)


def mask_class_id(mask: Path) -> int | None:
    """Class id in a mask's name, None when the name is not in this style."""
    match = _MASK_CLASS.search(mask.stem)
    return int(match.group(1)) if match else None


def _slug(text: str) -> str:
    """Text that may stand in a field of a file name: no separators, no double dashes."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "_", text)).strip("-_.") or "0"


def image_stem(modality: str, dataset: str, case: str) -> str:
    """Stem of a 2-D image; `modality` such as "CT" or "X-ray" is lower-cased and gets the kind `00` unless it has a second word."""
    prefix = re.sub(r"[^a-z0-9]+", "_", modality.lower()).strip("_") or "unknown"
    return f"{prefix if '_' in prefix else prefix + '_00'}--{_slug(dataset)}--{_slug(case)}--2d_none"


def mask_name(stem: str, class_id: int, instance: int | None) -> str:
    """File name of one instance's mask, or of the union of all instances (`instance` None)."""
    return f"{stem}--{class_id:04d}_{'merged' if instance is None else f'{instance:03d}'}.png"


class ClassNames:
    """Class id -> name per data set, from `SAMed2D_v1_class_mapping_id.json` of a root; empty when the root has none.

    Raises:
        InputError: the file is there and is not {data set: {class: id}}.
    """

    def __init__(self, root: Path) -> None:
        self._names: dict[tuple[str, int], str] = {}
        file = root / CLASS_FILE
        if not file.is_file():
            return
        try:
            for dataset, classes in json.loads(file.read_text(encoding="utf-8")).items():
                self._names.update({(dataset, int(number)): name for name, number in classes.items()})
        except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(where=file, expected='JSON {"data set": {"class": id}}', found=str(error)) from error

    def of_mask(self, mask: Path) -> str:
        """Name of the class of a mask file; the id as text when the table lacks it, the file's stem when the name has no id."""
        number = mask_class_id(mask)
        if number is None:
            return mask.stem
        return self._names.get((parse_stem(mask).dataset, number), f"class {number:04d}").replace("_", " ")
