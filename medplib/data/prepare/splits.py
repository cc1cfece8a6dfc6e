"""Who goes to train, val and test: never one patient to two of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medplib.data.prepare.manifest import ImageEntry
from medplib.errors import InputError

SPLITS = ("train", "val", "test")


def patient_of(entry: ImageEntry, patterns: Mapping[str, re.Pattern[str]]) -> str:
    """`<source>--<patient>`: the column, else the first group of the source's pattern in the image's path, else the image itself.

    Raises:
        InputError: the source has a pattern and the path does not match it.
    """
    if entry.patient:
        return f"{entry.source}--{entry.patient}"
    if entry.source not in patterns:
        return f"{entry.source}--{entry.relative}"
    pattern = patterns[entry.source]
    match = pattern.search(entry.relative)
    if match is None or not match.group(1):
        raise InputError(where=entry.where, expected=f"an image path that matches {pattern.pattern!r}", found=repr(entry.relative))
    return f"{entry.source}--{match.group(1)}"


def compile_patterns(patterns: Mapping[str, str], sources: set[str]) -> dict[str, re.Pattern[str]]:
    """Patient patterns by source.

    Raises:
        InputError: a source that the manifest does not have, a broken expression, or one with another number of groups than one.
    """
    compiled: dict[str, re.Pattern[str]] = {}
    for source, text in patterns.items():
        try:
            compiled[source] = re.compile(text)
        except re.error as error:
            raise InputError(where=f"patient pattern of {source}", expected="a regular expression", found=str(error)) from error
        if compiled[source].groups != 1 or source not in sources:
            raise InputError(
                where=f"patient pattern of {source!r}",
                expected=f"one group, for a source among {', '.join(sorted(sources))}",
                found=repr(text),
            )
    return compiled


def assign(
    entries: Sequence[ImageEntry], patients: Sequence[str], file: Path | None, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """The split of every image: from the column `split` if any row has it, else from a file, else by a hash of the patient.

    Args:
        entries: images.
        patients: patient of each image.
        file: JSON {source: {split: [image path, ...]}}.
        fractions: share of the patients of each source for val and test (used by the hash only).
        seed: part of the hash.

    Raises:
        InputError: an image in no or two splits, an unknown split, or a patient in two splits (the images are named).
    """
    if any(entry.split for entry in entries):
        splits = [_checked(entry.split, entry.where) for entry in entries]
    elif file is not None:
        table = _read_file(Path(file))
        splits = [_looked_up(entry, table, Path(file)) for entry in entries]
    else:
        drawn = draw([(entry.source, patient) for entry, patient in zip(entries, patients, strict=True)], fractions, seed)
        splits = [drawn[patient] for patient in patients]
    _check_patients(entries, patients, splits)
    return splits


def draw(members: Sequence[tuple[str, str]], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of every patient by rank of a hash, per source.

    The share is exact (rounded to whole patients, at least one where the fraction is not zero and two patients are left), which a
    threshold on the hash would not be for small sources; the order is that of SHA-256 of seed, source and patient.

    Args:
        members: (source, patient) pairs, repeats allowed.
        fractions: share per split; what remains is train.
        seed: part of the hash.
    """
    result: dict[str, str] = {}
    for source in {source for source, _ in members}:
        patients = sorted({p for s, p in members if s == source}, key=lambda p: hashlib.sha256(f"{seed}:{source}:{p}".encode()).digest())
        total = len(patients)
        for split, fraction in fractions.items():
            count = min(max(1, round(fraction * total)), len(patients) - 1) if fraction > 0 else 0
            result.update(dict.fromkeys(patients[:count], split))
            patients = patients[count:]
        result.update(dict.fromkeys(patients, "train"))
    return result


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Shares must lie in [0, 1) and leave something for train."""
    if any(not 0 <= f < 1 for f in fractions.values()) or sum(fractions.values()) >= 1:
        found = ", ".join(f"{name} {f}" for name, f in fractions.items())
        raise InputError(where="split fractions", expected="shares from 0 up that leave a rest for train", found=found)


def _checked(split: str, where: str) -> str:
    if split not in SPLITS:
        raise InputError(where=where, expected=f"split among {', '.join(SPLITS)}", found=repr(split))
    return split


def _looked_up(entry: ImageEntry, table: Mapping[tuple[str, str], str], file: Path) -> str:
    if entry.key not in table:
        raise InputError(where=entry.where, expected=f"a split for {entry.relative!r} of {entry.source} in {file}", found="none")
    return table[entry.key]


def _read_file(file: Path) -> dict[tuple[str, str], str]:
    """(source, image) -> split."""
    expected = f'JSON {{"source": {{"split": ["image", ...]}}}} with splits among {", ".join(SPLITS)}'
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        triples = [(source, image, split) for source, by in content.items() for split, images in by.items() for image in images]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(where=file, expected=expected, found=str(error)) from error
    table: dict[tuple[str, str], str] = {}
    for source, image, split in triples:
        if split not in SPLITS:
            raise InputError(where=file, expected=expected, found=f"split {split!r} of {source}")
        if table.setdefault((source, image), split) != split:
            raise InputError(where=file, expected="every image in one split", found=f"{image!r} in {table[source, image]} and {split}")
    return table


def _check_patients(entries: Sequence[ImageEntry], patients: Sequence[str], splits: Sequence[str]) -> None:
    first: dict[str, tuple[str, ImageEntry]] = {}
    for entry, patient, split in zip(entries, patients, splits, strict=True):
        other_split, other = first.setdefault(patient, (split, entry))
        if other_split != split:
            raise InputError(
                where=entry.where,
                expected=f"patient {patient.partition('--')[2]!r} of {entry.source} in one split",
                found=f"{entry.relative} in {split} and {other.relative} in {other_split}",
                remedy="put all images of a patient into the same split",
            )
