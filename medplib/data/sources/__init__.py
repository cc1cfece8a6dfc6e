"""Readers: one outside format each -> list[Record].

To add a format, write a function (file, root) -> list[Record] in a module of this folder and enter it in `READERS`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medplib.data.sources.mecovqa import read_mecovqa
from medplib.data.sources.mecovqa_write import write_mecovqa
from medplib.errors import InputError
from medplib.types import Record

__all__ = ["READERS", "read_mecovqa", "read_records", "write_mecovqa"]

READERS: dict[str, Callable[[Path, Path], list[Record]]] = {"mecovqa": read_mecovqa}
_HEAD = 1 << 16  # characters; the first entry of a conversation file has a few hundred


def read_records(file: Path, root: Path | None = None, format: str = "auto") -> list[Record]:
    """Read one data file.

    Args:
        file: for example `data/phantom/train/MeCoVQA-Grounding.json`.
        root: folder that its paths are relative to; None means the folder of `file` or the one above it, whichever holds `images/`.
        format: a key of `READERS`, or "auto" to tell it by the entries of the file.

    Raises:
        InputError: unknown format, no root found, or whatever the reader finds wrong.
    """
    file = Path(file)
    if format != "auto" and format not in READERS:
        raise InputError(where=file, expected=f"a format among auto, {', '.join(READERS)}", found=repr(format))
    reader = READERS[_detect(file) if format == "auto" else format]
    with _no_garbage():
        return reader(file, _find_root(file) if root is None else Path(root))


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Within the block nothing is looked for that could be freed: records are many small objects that all stay, and walking them again and
    again takes nearly half of the time of reading them.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _find_root(file: Path) -> Path:
    """The nearest of two folders that has `images/` in it."""
    for folder in (file.absolute().parent, file.absolute().parent.parent):
        if (folder / "images").is_dir():
            return folder
    raise InputError(where=file, expected="a folder images/ beside the file or one level above", found="none", remedy="give the data root")


def _detect(file: Path) -> str:
    """The format of a file by the fields of its first entry."""
    fields = _first_fields(file)
    if not fields or "conversations" in fields:
        return "mecovqa"  # whose reader says what is wrong with a file that has no entries
    remedy = "convert it first: `python -m medplib.prepare vqa_rad`" if {"qid", "image_name"} <= fields else f"known: {', '.join(READERS)}"
    raise InputError(where=file, expected="entries of a known format", found=f"fields {', '.join(sorted(fields))}", remedy=remedy)


def _first_fields(file: Path) -> set[str]:
    """Field names of the first entry of a JSON list, read from the head of the file; empty when it is no list of objects."""
    try:
        with file.open(encoding="utf-8") as stream:
            head = stream.read(_HEAD).lstrip()
        first, _ = json.JSONDecoder().raw_decode(head[1:].lstrip())
    except OSError as error:
        raise InputError(where=file, expected="a readable JSON file", found=error.strerror or str(error)) from error
    except ValueError:
        return set()
    return set(first) if isinstance(first, dict) and head.startswith("[") else set()
