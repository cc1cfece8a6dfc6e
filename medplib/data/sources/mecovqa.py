"""MeCoVQA conversation files (arXiv 2412.09278) -> records.

A file is a JSON list of {"id", "image", "conversations"}. Region prompts carry their mask as `<region>path</region>`, answers as
`<SEG><mask>path</mask>`; both paths are taken out of the text here. An optional object "meta", which the published files do not have, tells
what otherwise must be read off file names and questions, and is the only way to say that something is absent.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from medplib.data.sources.files import DataRoot, MissingFileError
from medplib.data.sources.questions import names_in_question
from medplib.data.sources.sa_med2d import ClassNames, Stem, parse_stem
from medplib.errors import InputError
from medplib.tokens import IMAGE_TAG, MASK_TAG, REGION_END, REGION_START, SEG
from medplib.types import Meta, Record, Target, Task, Turn

_log = logging.getLogger(__name__)

META_KEYS = ("source", "modality", "anatomy", "task", "patient", "present", "targets")
_REGION = re.compile(f"{REGION_START}(.*?){REGION_END}", re.DOTALL)
_MASK = re.compile(rf"\s*{MASK_TAG[0]}(.*?){MASK_TAG[1]}", re.DOTALL)
_ROLES = ("human", "gpt")
_TASKS = get_args(Task)


@dataclass(frozen=True)
class Problem:
    """A record that cannot be used: its place in the file, its id and why."""

    index: int
    record: str
    error: InputError


@dataclass(frozen=True)
class Parsed:
    """A conversation file read as far as it goes: (place in the file, record) of the good ones, and the problems of the others."""

    records: tuple[tuple[int, Record], ...]
    problems: tuple[Problem, ...]


def read_mecovqa(file: Path, root: Path) -> list[Record]:
    """Read a conversation file, all of it or not at all.

    Args:
        file: the JSON file.
        root: folder that its paths are relative to.

    Raises:
        InputError: naming the first record at fault and how many more there are: a file is missing or outside the root, or the record
            breaks an invariant of `medplib.types.Record` (one `<SEG>` per present target, one tag per region and per image).
    """
    parsed = parse_mecovqa(file, root)
    if parsed.problems:
        first, others = parsed.problems[0].error, len(parsed.problems) - 1
        more = f" (and {others} more of {others + 1 + len(parsed.records)} records are at fault)" if others else ""
        raise type(first)(where=first.where, expected=first.expected, found=first.found + more, remedy=first.remedy)
    return [record for _, record in parsed.records]


def parse_mecovqa(file: Path, root: Path) -> Parsed:
    """Read a conversation file and collect the records at fault instead of stopping at the first.

    Raises:
        InputError: the file is no JSON list of objects, or `root` is no folder.
    """
    items = load_items(file)
    shared = _Shared(data_root := DataRoot(root), ClassNames(data_root.root))
    records: list[tuple[int, Record]] = []
    problems: list[Problem] = []
    for index, item in enumerate(items):
        name = str(item.get("id", "")) if isinstance(item, dict) else ""
        where = f"{file}[{index}] {name}".rstrip()
        try:
            records.append((index, _Reader(item, where, shared).record(name)))
        except InputError as error:
            problems.append(Problem(index, name, error))
    for key, count in shared.ignored.items():
        _log.warning("%s: %d records have an unknown entry %r in meta; ignored (known: %s)", file, count, key, ", ".join(META_KEYS))
    return Parsed(tuple(records), tuple(problems))


def load_items(file: Path) -> list[object]:
    """The entries of a JSON list.

    Raises:
        InputError: no such file, not JSON, or not a list.
    """
    try:
        items = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(where=file, expected="a readable JSON file", found=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where=file, expected="JSON text", found=str(error), remedy="the file may be truncated") from error
    if not isinstance(items, list):
        raise InputError(where=file, expected="a JSON list of conversations", found=f"a JSON {type(items).__name__}")
    return items


@dataclass(frozen=True)
class _Said:
    """One turn after its paths were taken out."""

    turn: Turn
    paths: tuple[str, ...]  # regions of a human turn, masks of a gpt turn


@dataclass
class _Shared:
    """What the entries of a file share; `stems` remembers names already taken apart, because images return in many records."""

    root: DataRoot
    classes: ClassNames
    ignored: Counter[str] = field(default_factory=Counter)
    stems: dict[Path, Stem] = field(default_factory=dict)


class _Reader:
    """Reads one entry; a class only so that the place and the collaborators need not pass through every function."""

    def __init__(self, item: object, where: str, shared: _Shared) -> None:
        self.where, self.shared = where, shared
        self.item = self._object(item, "the record")
        self.meta = self._object(self.item.get("meta", {}), "meta")
        if unknown := [key for key in self.meta if key not in META_KEYS]:
            shared.ignored.update(unknown)

    def record(self, name: str) -> Record:
        """The entry as a Record whose invariants hold."""
        said = self._conversation()
        images = self._images()
        turns = tuple(s.turn for s in said)
        tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
        if tags != len(images):
            self._fail(f"one {IMAGE_TAG} in the questions per image", f"{tags} for {len(images)} images")
        regions = tuple(self._file(path) for s in said if s.turn.role == "human" for path in s.paths)
        targets = self._declared_targets(said, len(images)) if "targets" in self.meta else self._inferred_targets(said)
        return Record(name or images[0].stem, images, turns, targets, regions, self._meta(images, turns, regions))

    def _fail(self, expected: str, found: str, remedy: str = "") -> None:
        raise InputError(where=self.where, expected=expected, found=found, remedy=remedy)

    def _object(self, value: object, what: str) -> dict[str, object]:
        if not isinstance(value, dict):
            self._fail(f"{what} as a JSON object", type(value).__name__)
        return value

    def _file(self, path: object) -> Path:
        return self.shared.root.find(path.strip() if isinstance(path, str) else path, where=self.where)

    def _images(self) -> tuple[Path, ...]:
        value = self.item.get("image", [])
        paths = value if isinstance(value, list) else [value]
        if not paths:
            self._fail("an entry 'image'", "none")
        return tuple(self._file(path) for path in paths)

    def _conversation(self) -> list[_Said]:
        """Turns that alternate, begin with a question and end with an answer."""
        turns = self.item.get("conversations")
        if not isinstance(turns, list) or not turns or len(turns) % 2:
            self._fail("'conversations' as a list of question and answer in turn", f"{len(turns) if isinstance(turns, list) else turns!r}")
        return [self._said(self._object(turn, f"turn {i}"), i) for i, turn in enumerate(turns)]

    def _said(self, turn: dict[str, object], index: int) -> _Said:
        role, text = turn.get("from"), turn.get("value")
        if role != _ROLES[index % 2] or not isinstance(text, str):
            self._fail(f"turn {index} to be text from {_ROLES[index % 2]!r}", f"{type(text).__name__} from {role!r}")
        pattern, opening, kept = (_REGION, REGION_START, REGION_START + REGION_END) if role == "human" else (_MASK, MASK_TAG[0], "")
        paths = tuple(pattern.findall(text)) if opening in text else ()
        clean = pattern.sub(kept, text) if paths else text
        self._check_tags(role, clean, len(paths), index)
        return _Said(Turn(role, clean), paths)

    def _check_tags(self, role: str, text: str, paths: int, index: int) -> None:
        """No tag may be left open, or stand where it means nothing."""
        strangers = (SEG, *MASK_TAG) if role == "human" else (IMAGE_TAG, REGION_START, REGION_END, *MASK_TAG)
        wrong = [tag for tag in strangers if tag in text]
        if role == "human" and not text.count(REGION_START) == text.count(REGION_END) == paths:
            wrong.append(REGION_START)
        if wrong:
            self._fail(f"no open or misplaced tag in turn {index} ({role})", f"{wrong[0]} in {text[:80]!r}")

    def _inferred_targets(self, said: list[_Said]) -> tuple[Target, ...]:
        """Targets of the published form: every `<SEG>` brings its mask, the question tells the name."""
        targets: list[Target] = []
        seen_images = 0
        for index, s in enumerate(said):
            if s.turn.role == "human":
                seen_images += s.turn.text.count(IMAGE_TAG)
                continue
            count = s.turn.text.count(SEG)
            if count != len(s.paths):
                self._fail(f"one mask path after each {SEG} of turn {index}", f"{len(s.paths)} paths for {count} {SEG}")
            masks = [self._file(path) for path in s.paths]
            question = said[index - 1].turn.text.replace(IMAGE_TAG, " ")
            names = names_in_question(question, count) if count else ()
            names = names if names is not None else tuple(self.shared.classes.of_mask(mask) for mask in masks)
            image = max(seen_images - 1, 0)  # the picture shown last is the one spoken of
            targets += [Target(name, mask, image, index) for name, mask in zip(names, masks, strict=True)]
        return tuple(targets)

    def _declared_targets(self, said: list[_Said], images: int) -> tuple[Target, ...]:
        """Targets as meta lists them; they must agree with the text."""
        entries = self.meta["targets"]
        if not isinstance(entries, list):
            self._fail("meta.targets as a list", type(entries).__name__)
        targets = tuple(self._declared_target(self._object(entry, "a target"), said, images) for entry in entries)
        if [t.turn for t in targets] != sorted(t.turn for t in targets):
            self._fail("meta.targets in the order of their turns", str([t.turn for t in targets]))
        for index, s in enumerate(said):
            if s.turn.role == "gpt":
                self._check_answer(index, s, [t.mask for t in targets if t.turn == index and t.mask is not None])
        return targets

    def _declared_target(self, entry: dict[str, object], said: list[_Said], images: int) -> Target:
        name, turn, image = entry.get("name"), entry.get("turn", 1), entry.get("image_index", 0)
        if not isinstance(name, str) or not name.strip():
            self._fail("a target with a name", repr(name))
        if type(turn) is not int or turn not in range(1, len(said), 2):
            self._fail(f"target {name!r} to belong to an answer (odd turn below {len(said)})", repr(turn))
        if type(image) is not int or image not in range(images):
            self._fail(f"target {name!r} to lie in one of {images} images", repr(image))
        mask = entry.get("mask")
        return Target(name, None if mask is None else self._file(mask), image, turn)

    def _check_answer(self, index: int, said: _Said, masks: list[Path]) -> None:
        """The answer has one `<SEG>` per present target, and the paths in it, if any, are theirs."""
        count = said.turn.text.count(SEG)
        if count != len(masks):
            self._fail(f"one {SEG} per present target of turn {index}", f"{count} for {len(masks)} targets")
        if said.paths and [self._file(path) for path in said.paths] != masks:
            self._fail(f"the masks in the text of turn {index} to be those of meta.targets", ", ".join(said.paths))

    def _meta(self, images: tuple[Path, ...], turns: tuple[Turn, ...], regions: tuple[Path, ...]) -> Meta:
        """What meta says, completed from the name of the first image and from the content."""
        stem = self.shared.stems.get(images[0])
        if stem is None:
            stem = self.shared.stems[images[0]] = parse_stem(images[0])
        present = self.meta.get("present", [])
        if not isinstance(present, list) or not all(isinstance(name, str) for name in present):
            self._fail("meta.present as a list of names", repr(present)[:80])
        return Meta(
            source=self._text("source", stem.dataset),
            modality=self._text("modality", stem.modality),
            anatomy=self._text("anatomy", ""),
            task=self._task(turns, regions),
            patient=self._text("patient", stem.patient),
            present=tuple(present),
        )

    def _text(self, key: str, default: str) -> str:
        value = self.meta.get(key, default)
        if not isinstance(value, str):
            self._fail(f"meta.{key} as text", repr(value)[:80])
        return value

    def _task(self, turns: tuple[Turn, ...], regions: tuple[Path, ...]) -> Task:
        """The declared task, or the one that the content shows."""
        kind = str(self.item.get("answer_type", "open")).strip().lower()
        if kind not in ("open", "closed"):
            self._fail("answer_type 'open' or 'closed'", repr(kind))
        shown = "grounding" if any(SEG in turn.text for turn in turns) else "region" if regions else f"vqa_{kind}"
        task = self._text("task", shown)
        if task not in _TASKS:
            self._fail(f"meta.task to be one of {', '.join(_TASKS)}", repr(task))
        return task


def is_missing_file(problem: Problem) -> bool:
    """Whether a record is unusable only because a file is not there."""
    return isinstance(problem.error, MissingFileError)
