"""The manifest of an import: one CSV row per image and mask, checked before anything is decoded."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medplib.data.prepare.labels import LabelNames
from medplib.data.sources.files import DataRoot
from medplib.errors import InputError

REQUIRED = ("source", "modality", "image", "mask", "label")
OPTIONAL = ("mask_rule", "offset_left_top", "width", "height", "patient", "split", "anatomy", "fg_fraction", "note")
RULES = ("gt0", "gt127", "lt128")
ABSENT = "absent"
"""In the column `mask`: the structure was looked for in this image and is not there."""

_OFFSET = re.compile(r"^\(?\s*(\d+)\s*[,;\s]\s*(\d+)\s*\)?$")


@dataclass(frozen=True)
class MaskRow:
    """One mask file. `where` names the row in errors; `offset` is (left, top) of the patch that the file holds, None for a whole mask."""

    where: str
    path: Path
    rule: str
    offset: tuple[int, int] | None


@dataclass
class ImageEntry:
    """One image and all that the manifest says about it. `masks` maps a name to its instance masks; `size` is (width, height) if told."""

    where: str
    relative: str
    path: Path
    source: str
    modality: str
    anatomy: str
    patient: str
    split: str
    size: tuple[int, int] | None
    masks: dict[str, list[MaskRow]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    @property
    def key(self) -> tuple[str, str]:
        """Source and path: what names an image in a splits file."""
        return self.source, self.relative


def read_manifest(manifest: Path, root: Path | None, labels: LabelNames) -> list[ImageEntry]:
    """Read a manifest and group its rows by image, in order of first appearance.

    Args:
        manifest: CSV with the columns of `REQUIRED` and any of `OPTIONAL` (see docs: one row per mask; several rows of one image and label
            are instances; `mask` may be the word "absent"; `fg_fraction` and `note` are for people and not read).
        root: folder that image and mask paths are relative to; None means the folder of the manifest.
        labels: how labels become names.

    Raises:
        InputError: naming the row: a path is missing or leaves the root, an unknown rule or label, a duplicate or contradicting row.
    """
    data_root = DataRoot(Path(manifest).parent if root is None else Path(root))
    entries: dict[str, ImageEntry] = {}
    seen: dict[tuple[str, str, str], str] = {}
    raw_labels: dict[tuple[str, str], str] = {}
    for where, row in _rows(Path(manifest)):
        key = (row["image"], row["mask"], row["label"])
        if key in seen:
            raise InputError(where=where, expected="every image, mask and label once", found=f"the same as {seen[key]}")
        seen[key] = where
        entry = _entry(row, where, data_root)
        entry = _same(entries.setdefault(str(entry.path), entry), entry, where)
        name = labels.name(row["label"], where=where)
        first = raw_labels.setdefault((entry.relative, name), row["label"])
        if first != row["label"]:
            raise InputError(
                where=where,
                expected=f"one label of this image to become {name!r}",
                found=f"{first!r} and {row['label']!r}",
                remedy="tell them apart in a label map",
            )
        _add_mask(entry, row, name, where, data_root)
    if not entries:
        raise InputError(where=manifest, expected="at least one row", found="none")
    return list(entries.values())


def _rows(manifest: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, columns) of every row, values stripped."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(manifest, reader.fieldnames or [])
            for row in reader:
                where = f"{manifest} line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(where=where, expected=f"{len(reader.fieldnames or [])} columns", found="another number")
                yield where, {key: value.strip() for key, value in row.items()}
    except OSError as error:
        raise InputError(where=manifest, expected="a readable CSV file", found=error.strerror or str(error)) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(where=manifest, expected="CSV text in UTF-8", found=str(error)) from error


def _check_columns(manifest: Path, columns: list[str] | tuple[str, ...]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
    if missing or unknown or len(set(columns)) != len(columns):
        raise InputError(
            where=manifest,
            expected=f"columns {', '.join(REQUIRED)} and any of {', '.join(OPTIONAL)}",
            found=f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(map(repr, unknown)) or 'none'}",
        )


def _entry(row: dict[str, str], where: str, root: DataRoot) -> ImageEntry:
    """The image part of a row."""
    for column in REQUIRED:
        if not row[column]:
            raise InputError(where=where, expected=f"a value in column {column!r}", found="an empty cell")
    size = None
    if row.get("width") or row.get("height"):
        size = (_whole(row, "width", where), _whole(row, "height", where))
    path = root.find(row["image"], where=where)
    text = {name: row.get(name, "") for name in ("anatomy", "patient", "split")}
    return ImageEntry(where, row["image"], path, row["source"], row["modality"], text["anatomy"], text["patient"], text["split"], size)


def _whole(row: dict[str, str], column: str, where: str) -> int:
    value = row.get(column, "")
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise InputError(where=where, expected=f"a positive whole number in column {column!r}", found=repr(value))
    return int(value)


def _same(first: ImageEntry, other: ImageEntry, where: str) -> ImageEntry:
    """All rows of an image must say the same about it."""
    for column in ("source", "modality", "anatomy", "patient", "split", "size"):
        if getattr(first, column) != getattr(other, column):
            raise InputError(
                where=where,
                expected=f"one {column} for all rows of {first.relative}",
                found=f"{getattr(other, column)!r} here and {getattr(first, column)!r} at {first.where}",
            )
    return first


def _add_mask(entry: ImageEntry, row: dict[str, str], name: str, where: str, root: DataRoot) -> None:
    """Enter a row's mask, or its absence, under a name."""
    if row["mask"] == ABSENT:
        entry.absent.add(name)
    else:
        rule = row.get("mask_rule") or "gt0"
        if rule not in RULES:
            raise InputError(where=where, expected=f"mask_rule among {', '.join(RULES)}", found=repr(rule))
        match = _OFFSET.match(row.get("offset_left_top", ""))
        if row.get("offset_left_top") and match is None:
            raise InputError(where=where, expected="offset_left_top as 'left,top' in pixels", found=repr(row["offset_left_top"]))
        offset = (int(match.group(1)), int(match.group(2))) if match else None
        entry.masks.setdefault(name, []).append(MaskRow(where, root.find(row["mask"], where=where), rule, offset))
    if name in entry.absent and name in entry.masks:
        raise InputError(where=where, expected=f"{name!r} either absent or with masks in {entry.relative}", found="both")
