"""Facts about images -> conversations of five tasks, such that a question alone does not give its answer away.

Presence is asked as often of images that have a name as of images known not to (per name and split), sides and sizes in equal numbers per
name and split; where one of two answers has no case the question is not asked. Everything is drawn from a seed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medplib.data.answers import locating_answer
from medplib.data.prepare import phrases
from medplib.data.prepare.absence import AbsenceRules
from medplib.data.prepare.decode import ImageFacts, Structure
from medplib.tokens import IMAGE_TAG, REGION_END, REGION_START, SEG
from medplib.types import Meta, Record, Target, Task, Turn

_CLEAR_SIDE = 0.8  # share of a structure in one half of the image from which on its side is asked
_MIN_FOR_SIZE = 6  # training images of a name, below which "small" has no meaning
_SEVERAL = 3  # most structures asked for in one question


@dataclass(frozen=True)
class ConversationOptions:
    """How many questions are made.

    Args:
        paraphrases: wordings per structure in train (val and test: one).
        absent_ratio: questions for absent structures per question for present ones, per name and split, as far as images are known without.
        exhaustive: sources in which every structure that they name is labelled wherever it is visible.
        seed: seed of all choices.
    """

    paraphrases: int = 2
    absent_ratio: float = 0.5
    exhaustive: tuple[str, ...] = ()
    seed: int = 0


def build_conversations(images: Sequence[ImageFacts], root: Path, options: ConversationOptions) -> dict[str, list[Record]]:
    """Records by split, in a fixed order.

    Args:
        images: facts of all images of the data set (sizes are judged by train, absence by all).
        root: folder that the files of the facts are relative to.
        options: how many.
    """
    rules = AbsenceRules(images, options.exhaustive)
    limits = _size_limits([image for image in images if image.split == "train"])
    one_modality = len({image.modality for image in images}) == 1
    records: dict[str, list[Record]] = {}
    for split in sorted({image.split for image in images}):
        writer = _Writer(split, [image for image in images if image.split == split], root, options, rules)
        writer.describe()
        writer.locate()
        writer.regions()
        if not one_modality:
            writer.modalities()
        writer.presence()
        writer.sides()
        writer.sizes(limits)
        records[split] = writer.records
    return records


def _size_limits(train: Sequence[ImageFacts]) -> dict[str, tuple[float, float]]:
    """Lower and upper tertile of the area of each name over the training images."""
    areas: dict[str, list[float]] = defaultdict(list)
    for image in train:
        for structure in image.structures:
            areas[structure.name].append(structure.area)
    limits = {name: tuple(np.quantile(values, (1 / 3, 2 / 3))) for name, values in areas.items() if len(values) >= _MIN_FOR_SIZE}
    return {name: (low, high) for name, (low, high) in limits.items() if low < high}


Case = tuple[ImageFacts, str, str]  # image, name, answer


class _Writer:
    """Makes the records of one split."""

    def __init__(self, split: str, images: Sequence[ImageFacts], root: Path, options: ConversationOptions, rules: AbsenceRules) -> None:
        self.images, self.root, self.options, self.rules = images, root, options, rules
        digest = hashlib.sha256(f"{options.seed}:{split}".encode()).digest()
        self.rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        self.training = split == "train"
        self.paraphrases = options.paraphrases if self.training else 1
        self.records: list[Record] = []

    def describe(self) -> None:
        """A description and a caption of every image."""
        for image in self.images:
            sentence = phrases.description(image.modality, image.present)
            for task in ("vqa_open", "caption"):
                self._add(image, task, self._pick(phrases.DESCRIBE), sentence)

    def locate(self) -> None:
        """Every structure alone; where there are more, some together; and structures that are absent."""
        for image in self.images:
            for structure in image.structures:
                for template in self._several(phrases.LOCATE, self.paraphrases):
                    self._locate(image, template, [(structure.name, structure)])
            if len(image.structures) > 1:
                chosen = self.rng.permutation(len(image.structures))[: int(self.rng.integers(2, _SEVERAL + 1))]
                self._locate(image, self._pick(phrases.LOCATE_SEVERAL), [(image.structures[i].name, image.structures[i]) for i in chosen])
        for number, (image, name) in enumerate(self._absent(self.options.absent_ratio)):
            # Together with something that is there: every fourth; in train each of them, because a list is the harder answer to learn.
            together = bool(image.structures) and (number % 4 == 0 or self.training)
            if together:
                structure = image.structures[int(self.rng.integers(len(image.structures)))]
                pair = [(structure.name, structure), (name, None)]
                self._locate(image, self._pick(phrases.LOCATE_SEVERAL), pair[:: int(self.rng.choice((1, -1)))])
            if not together or self.training:
                self._locate(image, self._pick(phrases.LOCATE), [(name, None)])

    def regions(self) -> None:
        """What a marked area is."""
        for image in self.images:
            for structure in image.structures:
                question = self._pick(phrases.REGION).format(region=REGION_START + REGION_END)
                self._add(image, "region", question, structure.name, regions=(self.root / structure.mask,))

    def modalities(self) -> None:
        """The modality of every image."""
        for image in self.images:
            self._add(image, "vqa_closed", self._pick(phrases.MODALITY), image.modality)

    def presence(self) -> None:
        """Yes and no in equal numbers."""
        cases = [(image, name, "yes") for image in self.images for name in image.present]
        cases += [(image, name, "no") for image, name in self._absent(1.0)]
        for image, name, answer in self._balanced(cases, 2):
            self._add(image, "vqa_closed", self._pick(phrases.presence_templates(name)).format(name=name), answer)

    def sides(self) -> None:
        """Left or right half of the image, where it is clear and the name does not say it."""
        cases = [
            (image, s.name, "left" if s.left > 0.5 else "right")
            for image in self.images
            for s in image.structures
            if max(s.left, 1 - s.left) >= _CLEAR_SIDE and not {"left", "right"} & set(s.name.lower().split())
        ]
        for image, name, answer in self._balanced(cases, 2):
            self._add(image, "vqa_closed", self._pick(phrases.SIDE).format(name=name), answer)

    def sizes(self, limits: dict[str, tuple[float, float]]) -> None:
        """Small or large by the tertiles of the training images."""
        cases = [
            (image, s.name, "small" if s.area <= limits[s.name][0] else "large")
            for image in self.images
            for s in image.structures
            if s.name in limits and not limits[s.name][0] < s.area < limits[s.name][1]
        ]
        for image, name, answer in self._balanced(cases, 2):
            self._add(image, "vqa_closed", self._pick(phrases.SIZE).format(name=name), answer)

    def _pick(self, templates: Sequence[str]) -> str:
        return templates[int(self.rng.integers(len(templates)))]

    def _several(self, templates: Sequence[str], count: int) -> list[str]:
        return [templates[i] for i in self.rng.permutation(len(templates))[:count]]

    def _absent(self, ratio: float) -> list[tuple[ImageFacts, str]]:
        """(image, name not in it): per name `ratio` times as many as images that have it, those that could have it first."""
        hard: dict[str, list[ImageFacts]] = defaultdict(list)
        easy: dict[str, list[ImageFacts]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        for image in self.images:
            names = self.rules.absent(image)
            for known, where in ((names.hard, hard), (names.easy, easy)):
                for name in known:
                    where[name].append(image)
            for name in image.present:
                counts[name] += 1
        drawn: list[tuple[ImageFacts, str]] = []
        for name in sorted(counts):
            ordered = [pool[i] for pool in (hard[name], easy[name]) for i in self.rng.permutation(len(pool))]
            drawn += [(image, name) for image in ordered[: round(ratio * counts[name])]]
        return drawn

    def _balanced(self, cases: Sequence[Case], answers: int) -> list[Case]:
        """As many cases of each answer, per name; a name that lacks one of `answers` answers is left out."""
        groups: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
        for case in cases:
            groups[case[1]][case[2]].append(case)
        chosen: list[Case] = []
        for by_answer in groups.values():
            count = min(map(len, by_answer.values())) if len(by_answer) == answers else 0
            chosen += [group[i] for group in by_answer.values() for i in sorted(self.rng.permutation(len(group))[:count])]
        return chosen

    def _locate(self, image: ImageFacts, template: str, wanted: Sequence[tuple[str, Structure | None]]) -> None:
        """A question for named structures (None: absent) and its answer."""
        names = [name for name, _ in wanted]
        question = template.format(name=names[0], names=phrases.join_names(names), modality=image.modality)
        answer = locating_answer([(name, SEG if structure else None) for name, structure in wanted])
        targets = tuple(Target(name, self.root / structure.mask if structure else None) for name, structure in wanted)
        self._add(image, "grounding", question, answer, targets=targets)

    def _add(
        self,
        image: ImageFacts,
        task: Task,
        question: str,
        answer: str,
        *,
        targets: tuple[Target, ...] = (),
        regions: tuple[Path, ...] = (),
    ) -> None:
        turns = (Turn("human", f"{IMAGE_TAG}\n{question}"), Turn("gpt", answer))
        meta = Meta(image.source, image.modality, image.anatomy, task, image.patient, image.present)
        number = len(self.records)
        self.records.append(Record(f"{image.stem}--q{number}", (self.root / image.image,), turns, targets, regions, meta))
