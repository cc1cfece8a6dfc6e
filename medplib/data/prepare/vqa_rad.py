"""VQA-RAD (Lau et al., Scientific Data 2018) -> a data folder of closed and open questions (`python -m medplib.prepare vqa_rad`).

The published JSON has one entry per question: image_name, image_case_url, image_organ, question, answer, answer_type, phrase_type.
Questions marked `test_*` there become the split "test"; the others are divided by case, so that no image and no patient is in both parts.
(The official test questions speak of training images, too: that is counted and logged.)
"""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2

from medplib.data.prepare.layout import write_splits
from medplib.data.prepare.splits import check_fractions, draw
from medplib.data.sources.files import DataRoot
from medplib.data.sources.mecovqa import load_items
from medplib.data.sources.sa_med2d import image_stem
from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.overlay import write_png
from medplib.paths import new_folder
from medplib.tokens import IMAGE_TAG
from medplib.types import Meta, Record, Turn

_log = logging.getLogger(__name__)

SOURCE = "vqa_rad"
_ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}


@dataclass(frozen=True)
class VqaRadSummary:
    """What a conversion made: images and records (by task) per split, the repeated questions left out, and the images that the official
    test part shares with train or val.
    """

    out: Path
    images: dict[str, int]
    records: dict[str, dict[str, int]]
    repeated: int
    shared_with_test: int

    def lines(self) -> list[str]:
        """The summary as text, for people."""
        lines = [f"{self.out}: {sum(self.images.values())} images"]
        for split, count in self.images.items():
            lines.append(f"  {split}: {count} images; records: " + ", ".join(f"{task} {n}" for task, n in self.records[split].items() if n))
        lines.append(f"  left out: {self.repeated} repeated questions; images of train or val also in test: {self.shared_with_test}")
        return lines


@dataclass(frozen=True)
class _Question:
    where: str
    image: str
    case: str
    anatomy: str
    question: str
    answer: str
    closed: bool
    official_test: bool


def convert_vqa_rad(
    json_file: Path, images_dir: Path, out: Path, val_fraction: float = 0.15, seed: int = 0, max_side: int | None = None, workers: int = 2
) -> VqaRadSummary:
    """Convert the published JSON and its images.

    Args:
        json_file: the published JSON, or a part of it.
        images_dir: folder of the images.
        out: new or empty folder; it appears whole or not at all.
        val_fraction: share of the cases of the training part that goes to val.
        seed: seed of that division.
        max_side: shrink images to this longest side in pixels; None keeps them.
        workers: images decoded at a time.

    Raises:
        InputError: naming the entry: a field is missing or unknown, an image is missing or unreadable; or `out` has content.
    """
    check_fractions({"val": val_fraction})
    questions, repeated = _distinct(_read_questions(Path(json_file)))
    patients = _patients(questions)
    images = DataRoot(images_dir)
    paths = {q.image: images.find(q.image, where=q.where) for q in questions}
    drawn = draw([(SOURCE, patients[q.image]) for q in questions], {"val": val_fraction}, seed)
    splits = ["test" if q.official_test else drawn[patients[q.image]] for q in questions]
    test = {q.image for q, split in zip(questions, splits, strict=True) if split == "test"}
    shared = len(test & {q.image for q, split in zip(questions, splits, strict=True) if split != "test"})
    for count, what in ((repeated, "repeated questions left out"), (shared, "images of the official test part are in train or val, too")):
        if count:
            _log.warning("%s: %d %s", json_file, count, what)
    with new_folder(out) as part:
        stems = _write_images(paths, part, max_side, workers)
        records: dict[str, list[Record]] = {split: [] for split in sorted(set(splits))}
        for number, (question, split) in enumerate(zip(questions, splits, strict=True)):
            image = part / f"images/{stems[question.image]}.png"
            records[split].append(_record(question, number, image, patients[question.image]))
        counts = write_splits(part, records)
    per_split = {split: len({record.images for record in members}) for split, members in records.items()}
    return VqaRadSummary(Path(out), per_split, counts, repeated, shared)


def _read_questions(file: Path) -> list[_Question]:
    return [_question(item, f"{file}[{index}]") for index, item in enumerate(load_items(file))]


def _question(item: object, where: str) -> _Question:
    """One entry, its values as stripped text (some answers are numbers, some types end in a blank)."""
    fields = ("image_name", "image_case_url", "image_organ", "question", "answer", "answer_type", "phrase_type")
    missing = [name for name in fields if not isinstance(item, dict) or item.get(name) is None]
    if missing:
        raise InputError(where=where, expected=f"the fields {', '.join(fields)}", found=f"no {', '.join(missing)}")
    image, case, organ, question, answer, kind, phrase = (" ".join(str(item[name]).split()) for name in fields)
    if kind.upper() not in ("CLOSED", "OPEN") or organ.upper() not in _ORGANS:
        raise InputError(where=where, expected="answer_type CLOSED or OPEN and image_organ HEAD, CHEST or ABD", found=f"{kind}, {organ}")
    for name, text in (("question", question), ("answer", answer)):
        if not text or any(mark in text for mark in ("<SEG>", "<image>", "<region>", "<mask>")):
            raise InputError(where=where, expected=f"a {name} with words and without tags", found=repr(text))
    return _Question(
        where, image, case, _ORGANS[organ.upper()], question, answer.lower(), kind.upper() == "CLOSED", phrase.startswith("test")
    )


def _distinct(questions: list[_Question]) -> tuple[list[_Question], int]:
    """Questions without exact repeats (same image, words, answer and part), and how many were left out."""
    kept: dict[tuple[str, str, str, bool], _Question] = {}
    for q in questions:
        kept.setdefault((q.image, q.question.lower(), q.answer, q.official_test), q)
    return list(kept.values()), len(questions) - len(kept)


def _patients(questions: list[_Question]) -> dict[str, str]:
    """The patient of each image: its case, where cases that share an image (a few do) are one."""
    parent = {node: node for q in questions for node in (q.image, q.case)}

    def top(node: str) -> str:
        while parent[node] != node:
            node = parent[node]
        return node

    for q in questions:
        first, second = sorted((top(q.image), top(q.case)))
        parent[second] = first
    return {q.image: top(q.image) for q in questions}


def _write_images(paths: dict[str, Path], root: Path, max_side: int | None, workers: int) -> dict[str, str]:
    """Write every image as 8-bit RGB PNG; returns its stem by its old name."""
    stems = {name: image_stem("radiology", SOURCE, Path(name).stem) for name in paths}
    clash = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if clash:
        raise InputError(where=root, expected="image names that differ before the suffix", found=f"two for {clash[0]}")

    def write(name: str) -> None:
        pixels_HW3 = read_image(paths[name]).pixels
        scale = 1.0 if max_side is None else min(1.0, max_side / max(pixels_HW3.shape[:2]))
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in pixels_HW3.shape[:2])
            pixels_HW3 = cv2.resize(pixels_HW3, (width, height), interpolation=cv2.INTER_AREA)
        write_png(pixels_HW3, root / f"images/{stems[name]}.png")

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, paths):
            pass
    return stems


def _record(question: _Question, number: int, image: Path, patient: str) -> Record:
    """A question as a record; closed and open differ in their task."""
    turns = (Turn("human", f"{IMAGE_TAG}\n{question.question}"), Turn("gpt", question.answer))
    task = "vqa_closed" if question.closed else "vqa_open"
    meta = Meta(source=SOURCE, anatomy=question.anatomy, task=task, patient=f"{SOURCE}--{patient}")
    return Record(f"{image.stem}--q{number}", (image,), turns, meta=meta)
