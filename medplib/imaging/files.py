"""Checks on input and output paths that every reader and writer of this package shares."""

from __future__ import annotations

import os
from pathlib import Path

from medplib.errors import InputError

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")


def suffix_of(path: Path) -> str:
    """The suffix in lower case, `.nii.gz` taken as one."""
    name = os.path.basename(path).lower()  # every file of a training set comes by here: a Path made of a part takes longer
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def check_input_file(path: Path, expected: str) -> None:
    """Raise an InputError unless `path` is an existing file with at least one byte.

    Args:
        path: the file about to be read.
        expected: what it should be, in the words of the error.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(where=path, expected=expected, found="a folder", remedy="name one file inside it")
    if not path.exists():
        raise InputError(where=path, expected=expected, found="no such file", remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError(where=path, expected=expected, found="an empty file (0 bytes)", remedy="copy or export it again")


def check_output_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise an InputError unless `path` ends with one of `suffixes` (the writer chooses the format by it) and is not a folder."""
    if suffix_of(path) not in suffixes:
        raise InputError(where=path, expected="an output name ending in " + " or ".join(suffixes), found=repr(Path(path).name))
    if Path(path).is_dir():
        raise InputError(where=path, expected="an output file", found="a folder", remedy="name a file inside it")
