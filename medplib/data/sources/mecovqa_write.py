"""Records -> MeCoVQA conversation files; the inverse of `medplib.data.sources.mecovqa`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from medplib.data.sources.files import DataRoot
from medplib.errors import InputError
from medplib.paths import atomic_path
from medplib.tokens import MASK_TAG, REGION_END, REGION_START, SEG
from medplib.types import Record, Target, Turn


def write_mecovqa(records: Iterable[Record], file: Path, root: Path) -> None:
    """Write records so that `read_mecovqa(file, root)` returns them again.

    Args:
        records: their files must lie under `root`.
        file: the JSON file; it appears whole or not at all.
        root: folder that the paths are written relative to.

    Raises:
        InputError: a record's file lies outside the root, or its text has another number of tags than it has targets or regions.
    """
    data_root = DataRoot(root)
    entries = [_entry(record, data_root) for record in records]
    with atomic_path(Path(file)) as part, part.open("w", encoding="utf-8") as stream:
        json.dump(entries, stream, ensure_ascii=False, indent=1)
        stream.write("\n")


def _entry(record: Record, root: DataRoot) -> dict[str, object]:
    """One record in the published schema plus our `meta`."""
    where = f"record {record.id}"
    images = [root.relative(path, where=where) for path in record.images]
    masks = iter([root.relative(t.mask, where=where) for t in record.targets if t.mask is not None])
    regions = iter([root.relative(path, where=where) for path in record.regions])
    turns = [{"from": turn.role, "value": _with_paths(turn, masks, regions, where)} for turn in record.turns]
    if next(masks, None) is not None or next(regions, None) is not None:
        raise InputError(where=where, expected=f"one {SEG} per present target and one tag per region", found="fewer tags than files")
    entry: dict[str, object] = {"id": record.id, "image": images[0] if len(images) == 1 else images, "conversations": turns}
    if record.meta.task in ("vqa_closed", "vqa_open"):
        entry["answer_type"] = record.meta.task.removeprefix("vqa_")
    return entry | {"meta": _meta(record, root, where)}


def _with_paths(turn: Turn, masks: Iterator[str], regions: Iterator[str], where: str) -> str:
    """The text of a turn with the path put back behind each `<SEG>` and into each region tag."""
    mark, files = (SEG, masks) if turn.role == "gpt" else (REGION_START + REGION_END, regions)
    pieces = turn.text.split(mark)
    text = pieces[0]
    for piece in pieces[1:]:
        path = next(files, None)
        if path is None:
            raise InputError(where=where, expected=f"one file per {mark}", found="more tags than files")
        filled = f"{SEG}{MASK_TAG[0]}{path}{MASK_TAG[1]}" if turn.role == "gpt" else f"{REGION_START}{path}{REGION_END}"
        text += filled + piece
    return text


def _meta(record: Record, root: DataRoot, where: str) -> dict[str, object]:
    meta = record.meta
    return {
        "source": meta.source,
        "modality": meta.modality,
        "anatomy": meta.anatomy,
        "task": meta.task,
        "patient": meta.patient,
        "present": list(meta.present),
        "targets": [_target(target, root, where) for target in record.targets],
    }


def _target(target: Target, root: DataRoot, where: str) -> dict[str, object]:
    mask = None if target.mask is None else root.relative(target.mask, where=where)
    entry: dict[str, object] = {"name": target.name, "mask": mask, "turn": target.turn}
    return entry if target.image_index == 0 else entry | {"image_index": target.image_index}
