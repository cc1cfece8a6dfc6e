"""Write the whole data set in the official MeCoVQA / SA-Med2D-20M layout; it appears whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from medplib.data.phantom import catalog
from medplib.data.phantom.case import Case, Facts, render_case
from medplib.data.phantom.config import SPLITS, PhantomConfig
from medplib.data.phantom.conversations import Questions, build_questions
from medplib.data.phantom.records import Conversation, dump
from medplib.data.phantom.volumes import write_volumes
from medplib.paths import new_folder

_TRAIN_FILES = ("alignment", "MeCoVQA-Complex", "MeCoVQA-Region", "MeCoVQA-Closed", "MeCoVQA-Grounding")
_TEST_FILES = ("alignment", "MeCoVQA_Complex_VQA_test", "MeCoVQA_Region_VQA_test", "MeCoVQA_Closed_VQA_test", "MeCoVQA_Grounding_test")


@dataclass(frozen=True)
class PhantomSummary:
    """What was written. Counts are nested by split, then by modality, task or structure name (grounding targets present / absent)."""

    root: Path
    images: dict[str, dict[str, int]]
    questions: dict[str, dict[str, int]]
    targets_present: dict[str, dict[str, int]]
    targets_absent: dict[str, dict[str, int]]
    masks: int
    volumes: int

    def lines(self) -> list[str]:
        """A line for each split, and one in all."""
        rows = [
            f"{split}: {sum(images.values())} images, {sum(self.questions[split].values())} questions; grounding targets "
            f"{sum(self.targets_present[split].values())} present, {sum(self.targets_absent[split].values())} absent"
            for split, images in self.images.items()
        ]
        return [*rows, f"{self.root}: {self.masks} masks, {self.volumes} volumes"]


@dataclass(frozen=True)
class _Job:
    """One case to draw and where to put it."""

    seed: int
    split: str
    index: int
    number: int
    root: Path


def _save_image(array: np.ndarray, path: Path) -> None:
    """Noise has few repetitions that are worth a search: run lengths take half the time and no more room."""
    Image.fromarray(array).save(path, compress_level=1, compress_type=zlib.Z_RLE)


def _save_mask(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=2)


def save_case(case: Case, root: Path) -> None:
    """Write the image, one PNG (0 or 255) per instance mask, and the union where a structure has several instances."""
    facts = case.facts
    _save_image(case.image, root / "images" / f"{facts.stem}.png")
    for (name, instance), mask in case.masks.items():
        _save_mask(mask, root / facts.mask_path(name, instance))
    for seen in facts.seen:
        if seen.instances > 1:
            union = np.logical_or.reduce([case.masks[(seen.name, i + 1)] for i in range(seen.instances)])
            _save_mask(union, root / facts.target_path(seen))


def _draw(job: _Job) -> Facts:
    case = render_case(job.seed, job.split, job.index, job.number)
    save_case(case, job.root)
    return case.facts


def _single_threaded() -> None:
    """A worker draws small images: threads inside it would only compete with the other workers."""
    cv2.setNumThreads(0)


@contextmanager
def _drawing(jobs: list[_Job], workers: int) -> Iterator[Iterator[Facts]]:
    """Facts of all cases, in the order of the jobs; processes draw on while the first ones are read."""
    if workers <= 1:
        yield map(_draw, jobs)
        return
    with multiprocessing.Pool(workers, initializer=_single_threaded) as pool:
        yield pool.imap(_draw, jobs, chunksize=16)


def _write_json(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_index(cases: list[Facts], root: Path) -> int:
    """The two index files of SA-Med2D-20M: masks of each image, and class ids. Returns the number of masks."""
    index = {
        f"images/{facts.stem}.png": [facts.mask_path(seen.name, i + 1) for seen in facts.seen for i in range(seen.instances)]
        for facts in cases
    }
    ids = {"phantom": {name: f"{number:04d}" for name, number in catalog.CLASS_IDS.items()}}
    _write_json(root / "SAMed2D_v1.json", json.dumps(index, indent=1) + "\n")
    _write_json(root / "SAMed2D_v1_class_mapping_id.json", json.dumps(ids, indent=1) + "\n")
    return sum(len(masks) for masks in index.values())


def _write_questions(split: str, questions: Questions, root: Path) -> None:
    """The conversation files of a split under the names of the official release."""
    if split == "zero_shot":
        visible = [c for c in questions.grounding if c.targets[0].mask is not None]
        absent = [c for c in questions.grounding if c.targets[0].mask is None]
        _write_json(root / "zero_shot" / "grounding.json", dump(visible))
        _write_json(root / "zero_shot" / "absent.json", dump(absent))
        for modality in catalog.MODALITIES:
            own = [c for c in visible if c.facts.modality == modality]
            _write_json(root / "zeroshot4grounding" / f"{modality.name.lower().replace('-', '')}.json", dump(own))
        return
    lists = (questions.caption, questions.describe, questions.region, questions.closed, questions.grounding)
    for name, conversations in zip(_TEST_FILES if split == "test" else _TRAIN_FILES, lists, strict=True):
        _write_json(root / split / f"{name}.json", dump(conversations))


def _count_targets(conversations: list[Conversation], present: bool) -> dict[str, int]:
    names = Counter(t.name for c in conversations for t in c.targets if (t.mask is not None) == present)
    return dict(sorted(names.items()))


def _summary(out: Path, cases: list[Facts], questions: dict[str, Questions], masks: int, volumes: int) -> PhantomSummary:
    return PhantomSummary(
        root=out,
        images={s: dict(Counter(f.modality.name for f in cases if f.split == s)) for s in SPLITS},
        questions={s: dict(Counter(c.task for c in q.all())) for s, q in questions.items()},
        targets_present={s: _count_targets(q.grounding, present=True) for s, q in questions.items()},
        targets_absent={s: _count_targets(q.grounding, present=False) for s, q in questions.items()},
        masks=masks,
        volumes=volumes,
    )


def write_phantom(config: PhantomConfig, out: Path, workers: int = 2) -> PhantomSummary:
    """Draw and write the data set.

    Args:
        config: sizes and seed; the same config gives the same bytes.
        out: folder to create; must be empty or not exist.
        workers: processes that draw; has no influence on the result.

    Raises:
        InputError: `out` holds something already.
    """
    out = Path(out)
    jobs: list[_Job] = []
    with new_folder(out) as root:
        for folder in ("images", "masks", "masks_merged"):
            (root / folder).mkdir()
        for split in SPLITS:
            jobs += [_Job(config.seed, split, i, len(jobs) + i, root) for i in range(config.count(split))]
        cases: list[Facts] = []
        questions: dict[str, Questions] = {}
        with _drawing(jobs, workers) as drawn:
            for split in SPLITS:
                own = list(islice(drawn, config.count(split)))
                questions[split] = build_questions(config, split, own)
                _write_questions(split, questions[split], root)
                cases += own
        masks = _write_index(cases, root)
        volumes = write_volumes(config.seed, config.volumes, root / "volumes")
        summary = _summary(out, cases, questions, masks, len(volumes))
        about = {"config": asdict(config), "held_out": [list(triplet) for triplet in catalog.HELD_OUT]}
        counts = {key: value for key, value in asdict(summary).items() if key != "root"}
        _write_json(root / "phantom.json", json.dumps({**about, **counts}, indent=1) + "\n")
    return summary
