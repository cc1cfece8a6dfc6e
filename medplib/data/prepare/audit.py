"""Audit of a data folder before training (`python -m medplib.prepare audit`): unusable files and records, repeats, leaks, counts.

A split is a folder below the root that holds conversation files. What one finds in train is compared with every other split.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from medplib.data.prepare.filecheck import FileFacts, check_images, check_masks
from medplib.data.prepare.layout import write_json
from medplib.data.sources.mecovqa import is_missing_file, load_items, parse_mecovqa
from medplib.errors import InputError
from medplib.paths import new_folder
from medplib.types import Record

_log = logging.getLogger(__name__)

Kind = Literal["invalid", "missing", "unreadable", "size_mismatch", "empty_mask", "duplicate", "image_leak", "patient_leak"]
AREA_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Edges of the histogram of mask areas, as shares of the image; the last bin includes 1."""

TRAIN = "train"


@dataclass(frozen=True)
class Issue:
    """One thing wrong with one record: its file and place in it, and a line about it."""

    kind: Kind
    file: Path
    index: int
    record: str
    text: str


@dataclass(frozen=True)
class Place:
    """A record that could be read, with its place."""

    split: str
    file: Path
    index: int
    record: Record


@dataclass(frozen=True)
class AuditReport:
    """Result of an audit. Counts are of records; `areas` counts distinct masks of each name per bin of `AREA_EDGES`."""

    root: Path
    files: tuple[Path, ...]
    issues: tuple[Issue, ...]
    records: int
    splits: dict[str, int]
    tasks: dict[str, int]
    modalities: dict[str, int]
    names: dict[str, int]
    absent_names: dict[str, int]
    images: int
    masks: int
    areas: dict[str, tuple[int, ...]]

    def of_kind(self, kind: Kind) -> tuple[Issue, ...]:
        """Issues of one kind."""
        return tuple(issue for issue in self.issues if issue.kind == kind)

    def lines(self, examples: int = 3) -> list[str]:
        """The report as text, for people; at most `examples` issues of each kind are spelled out."""
        lines = [f"{self.root}: {self.records} records in {len(self.files)} files, {self.images} images, {self.masks} masks"]
        tables = (("split", self.splits), ("split/task", self.tasks), ("modality", self.modalities), ("name", self.names))
        for title, table in (*tables, ("absent name", self.absent_names)):
            lines.append(f"  per {title}: " + (", ".join(f"{key or '(none)'} {n}" for key, n in table.items()) or "none"))
        if self.areas:
            lines.append("  mask area, share of the image, up to " + " | ".join(f"{edge:g}" for edge in AREA_EDGES[1:]))
            lines += [f"    {name}: {' | '.join(map(str, bins))}" for name, bins in self.areas.items()]
        for kind, count in Counter(issue.kind for issue in self.issues).items():
            lines.append(f"  {kind}: {count}")
            lines += [f"    {issue.text}" for issue in self.of_kind(kind)[:examples]]
        return [*lines, f"  {len(self.issues)} issues" if self.issues else "  no issues"]


def audit(root: Path, *, decode: bool = True, workers: int = 2) -> AuditReport:
    """Look through all conversation files below a root.

    Args:
        root: folder with images/, masks/ and conversation files in its subfolders (or directly in it).
        decode: whether to open every image and mask once; without, only records and the existence of files are checked.
        workers: files opened at a time.

    Raises:
        InputError: no conversation file, or a file that is no JSON at all.
    """
    root = Path(root).resolve()
    files = find_conversation_files(root)
    places: list[Place] = []
    issues: list[Issue] = []
    for file in files:
        parsed = parse_mecovqa(file, root)
        places += [Place(_split(file, root), file, index, record) for index, record in parsed.records]
        for problem in parsed.problems:
            kind = "missing" if is_missing_file(problem) else "invalid"
            issues.append(Issue(kind, file, problem.index, problem.record, str(problem.error)))
    images = check_images({path for p in places for path in p.record.images}, workers) if decode else {}
    masks = check_masks({path for p in places for path in _masks_of(p.record)}, workers) if decode else {}
    for place in places:
        issues += _file_issues(place, images, masks)
    issues += [*_duplicates(places), *_image_leaks(places, images), *_patient_leaks(places)]
    return _report(root, files, issues, places, masks)


def find_conversation_files(root: Path) -> tuple[Path, ...]:
    """JSON files in the root and one folder below whose first entry has "conversations", or whose list is empty; sorted.

    Raises:
        InputError: there is none.
    """
    found = [file for file in sorted((*root.glob("*.json"), *root.glob("*/*.json"))) if _is_conversation_file(file)]
    if not found:
        raise InputError(where=root, expected="JSON files with conversations, here or one folder below", found="none")
    return tuple(found)


def write_filtered(report: AuditReport, out: Path, kinds: Sequence[Kind]) -> dict[str, int]:
    """Write copies of the conversation files without the records that have issues of some kinds, and `dropped.json` with the reasons.

    Args:
        report: result of an audit.
        out: new or empty folder; files keep their place below it. Images and masks stay where they are.
        kinds: which issues cost a record its place.

    Returns:
        number of records left out per file (relative to the root).
    """
    dropped: dict[Path, dict[int, list[Issue]]] = {file: defaultdict(list) for file in report.files}
    for issue in report.issues:
        if issue.kind in kinds:
            dropped[issue.file][issue.index].append(issue)
    with new_folder(out) as part:
        reasons: list[dict[str, object]] = []
        for file, by_index in dropped.items():
            relative = file.relative_to(report.root)
            (part / relative.parent).mkdir(parents=True, exist_ok=True)
            write_json([item for i, item in enumerate(load_items(file)) if i not in by_index], part / relative)
            for i, found in sorted(by_index.items()):
                entry = {"file": relative.as_posix(), "index": i, "id": found[0].record}
                reasons.append(entry | {"reasons": [{"kind": issue.kind, "text": issue.text} for issue in found]})
        write_json(reasons, part / "dropped.json")
    counts = {file.relative_to(report.root).as_posix(): len(by_index) for file, by_index in dropped.items()}
    _log.warning("%s: %d records left out, see dropped.json", out, sum(counts.values()))
    return counts


def _is_conversation_file(file: Path) -> bool:
    if file.name == "dropped.json":
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        if not stream.read(64).lstrip().startswith("["):
            return False
    items = load_items(file)
    return not items or (isinstance(items[0], dict) and "conversations" in items[0])


def _split(file: Path, root: Path) -> str:
    """The folder below the root, or the file's own name when it lies in the root."""
    relative = file.relative_to(root)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _masks_of(record: Record) -> Iterator[Path]:
    yield from (target.mask for target in record.targets if target.mask is not None)
    yield from record.regions


def _issue(kind: Kind, place: Place, text: str) -> Issue:
    return Issue(kind, place.file, place.index, place.record.id, f"{place.file}[{place.index}] {place.record.id}: {text}")


def _file_issues(place: Place, images: dict[Path, FileFacts], masks: dict[Path, FileFacts]) -> Iterator[Issue]:
    """What is wrong with the files of a record; empty when files were not opened."""
    record = place.record
    for path in (*record.images, *_masks_of(record)):
        facts = images.get(path) or masks.get(path)
        if facts is not None and facts.error:
            yield _issue("unreadable", place, facts.error)
    pairs = [(t.mask, record.images[t.image_index]) for t in record.targets if t.mask is not None]
    pairs += [(region, record.images[0]) for region in record.regions if len(record.images) == 1]
    for mask, image in pairs:
        of_mask, of_image = masks.get(mask), images.get(image)
        if of_mask is None or of_image is None or of_mask.error or of_image.error:
            continue
        if of_mask.size != of_image.size:
            yield _issue("size_mismatch", place, f"mask {mask.name} is {of_mask.size}, image {image.name} {of_image.size} (height, width)")
        if of_mask.area == 0:
            yield _issue("empty_mask", place, f"mask {mask.name} has no foreground")


def _duplicates(places: Sequence[Place]) -> Iterator[Issue]:
    """The same images, words and masks again in the same split and task."""
    seen: dict[tuple[object, ...], Place] = {}
    for place in places:
        record = place.record
        key = (place.split, record.meta.task, record.images, record.turns, record.targets, record.regions)
        first = seen.setdefault(key, place)
        if first is not place:
            yield _issue("duplicate", place, f"the same as {first.file.name}[{first.index}]")


def _image_leaks(places: Sequence[Place], images: dict[Path, FileFacts]) -> Iterator[Issue]:
    """Records outside train with an image whose pixels (or, unopened, whose file) are in train, too."""
    train: dict[object, Path] = {}
    for place in places:
        if place.split == TRAIN:
            train.update({_content(path, images): path for path in place.record.images})
    for place in places:
        if place.split != TRAIN:
            for path in place.record.images:
                if (twin := train.get(_content(path, images))) is not None:
                    yield _issue("image_leak", place, f"{path.name} is in train, too, as {twin.name}")


def _content(path: Path, images: dict[Path, FileFacts]) -> object:
    """What makes two images the same: their pixels, or the path of one that was not or could not be read."""
    facts = images.get(path)
    return path if facts is None or facts.error else facts.pixels


def _patient_leaks(places: Sequence[Place]) -> Iterator[Issue]:
    """Records outside train of a patient of the same source who is in train, too."""
    train = {(p.record.meta.source, p.record.meta.patient) for p in places if p.split == TRAIN and p.record.meta.patient}
    for place in places:
        meta = place.record.meta
        if place.split != TRAIN and (meta.source, meta.patient) in train:
            yield _issue("patient_leak", place, f"patient {meta.patient} is in train, too")


def _report(root: Path, files: tuple[Path, ...], issues: list[Issue], places: Sequence[Place], masks: dict[Path, FileFacts]) -> AuditReport:
    targets = [target for place in places for target in place.record.targets]
    by_name: dict[str, set[Path]] = defaultdict(set)
    for target in targets:
        if target.mask in masks and not masks[target.mask].error:
            by_name[target.name].add(target.mask)
    return AuditReport(
        root=root,
        files=files,
        issues=tuple(issues),
        records=len(places) + sum(issue.kind in ("missing", "invalid") for issue in issues),
        splits=_count(place.split for place in places),
        tasks=_count(f"{place.split}/{place.record.meta.task}" for place in places),
        modalities=_count(place.record.meta.modality for place in places),
        names=_count(target.name for target in targets if target.mask is not None),
        absent_names=_count(target.name for target in targets if target.mask is None),
        images=len({path for place in places for path in place.record.images}),
        masks=len({path for place in places for path in _masks_of(place.record)}),
        areas={name: _histogram([masks[path].area for path in paths]) for name, paths in sorted(by_name.items())},
    )


def _count(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _histogram(areas: Sequence[float]) -> tuple[int, ...]:
    """Counts per bin of `AREA_EDGES`, upper edges inclusive, so that empty masks fall into the first."""
    return tuple(sum((low < a or low == 0) and a <= high for a in areas) for low, high in pairwise(AREA_EDGES))
