"""Data sets over records: one for training (images with several of their conversations, drawn anew each time), one for evaluation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from medplib.data.augment import AugmentConfig, Augmenter
from medplib.data.cache import FileCache
from medplib.data.encode import Loaded, SampleEncoder
from medplib.data.mosaic import mosaic
from medplib.errors import InputError
from medplib.types import Record, Sample


def load_records(records: tuple[Record, ...], cache: FileCache) -> Loaded:
    """Read the files of conversations about the same images.

    Raises:
        InputError: a mask is empty or of another size than its image.
    """
    images = tuple(cache.image(path) for path in records[0].images)
    targets = tuple(
        tuple(None if t.mask is None else _filled(cache.mask(t.mask, images[t.image_index].shape[:2]), t.mask, r) for t in r.targets)
        for r in records
    )
    regions = tuple(tuple(_filled(cache.mask(path, images[0].shape[:2]), path, r) for path in r.regions) for r in records)
    return Loaded(images, records, targets, regions, tuple(cache.spacing(path) for path in records[0].images))


def _filled(mask: np.ndarray, path: Path, record: Record) -> np.ndarray:
    if not mask.any():
        raise InputError(where=path, expected="a mask with foreground", found="an empty mask",
                         remedy=f"record {record.id}: drop it or mark the target absent (mask: null)")  # fmt: skip
    return mask


@dataclass(frozen=True)
class DrawConfig:
    """How a training sample is drawn.

    Args:
        conversations: at most so many conversations of an image share one image prefix.
        task_weights: task -> share of the conversations drawn; a task that is not listed is not drawn.
        absent_weight: weight of grounding conversations whose targets are all absent, relative to the others.
        several_weight: weight of grounding conversations about several targets, relative to those about one.
        mosaic: share of samples made of two images side by side.
        balance: "images" draws images evenly, "sources" draws sources evenly.
    """

    conversations: int = 4
    task_weights: dict[str, float] = field(
        default_factory=lambda: {"caption": 1.0, "vqa_closed": 1.0, "vqa_open": 1.0, "region": 1.0, "grounding": 1.0}
    )
    absent_weight: float = 1.0
    several_weight: float = 1.0
    mosaic: float = 0.0
    balance: str = "images"


class TrainingSet(Dataset):
    """Sample number i of an endless stream is a pure function of (seed, i), so that resuming is counting.

    Args:
        records: all conversations; those about the same images are grouped.
        encoder: builds the tensors.
        draw, augment, seed: see the configuration.
        cache: of decoded files.
    """

    def __init__(
        self, *, records: list[Record], encoder: SampleEncoder, draw: DrawConfig, augment: AugmentConfig, seed: int, cache: FileCache
    ) -> None:
        self.encoder, self.draw, self.seed = encoder, draw, seed
        groups: dict[tuple[Path, ...], list[Record]] = defaultdict(list)
        for record in records:
            if draw.task_weights.get(record.meta.task, 0) * self._factor(record) > 0:
                groups[record.images].append(record)
        if not groups:
            raise InputError(where="data.draw.task_weights", expected="tasks that the data have", found=", ".join(draw.task_weights))
        self.groups = list(groups.values())
        self.augment = Augmenter(augment)
        self.cache = cache
        self._weights = [self._record_weights(group) for group in self.groups]
        by_source = defaultdict(list)
        for index, group in enumerate(self.groups):
            by_source[group[0].meta.source].append(index)
        self._sources = [np.array(members) for members in by_source.values()]

    def __len__(self) -> int:
        return len(self.groups)

    def _record_weights(self, group: list[Record]) -> np.ndarray:
        """Weight per record so that tasks are drawn as configured however many records each has."""
        counts: dict[str, float] = defaultdict(float)
        factors = [self._factor(r) for r in group]
        for record, factor in zip(group, factors, strict=True):
            counts[record.meta.task] += factor
        weights = [self.draw.task_weights[r.meta.task] * f / max(counts[r.meta.task], 1e-9) for r, f in zip(group, factors, strict=True)]
        return np.array(weights)

    def _factor(self, record: Record) -> float:
        absent = bool(record.targets) and all(t.mask is None for t in record.targets)
        return (self.draw.absent_weight if absent else 1.0) * (self.draw.several_weight if len(record.targets) > 1 else 1.0)

    def _draw_group(self, rng: np.random.Generator) -> tuple[Record, ...]:
        if self.draw.balance == "sources":
            members = self._sources[rng.integers(len(self._sources))]
            index = int(members[rng.integers(len(members))])
        else:
            index = int(rng.integers(len(self.groups)))
        group, weights = self.groups[index], self._weights[index]
        # Races between exponential times are won in the order of draws by weight without replacement, at a tenth of the cost
        times = rng.standard_exponential(len(group)) / weights
        return tuple(group[i] for i in np.argsort(times)[: self.draw.conversations])

    def _drawn(self, rng: np.random.Generator) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        """The conversations of a sample, and those about the image put beside it; none where it stands alone."""
        group = self._draw_group(rng)
        return group, self._draw_group(rng) if rng.random() < self.draw.mosaic else ()

    def text_size(self, index: int) -> int:
        """Characters of the conversations of a sample; says without reading its files which samples are about as long."""
        return sum(len(turn.text) for group in self._drawn(self._rng(index)) for record in group for turn in record.turns)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(index)])

    def __getitem__(self, index: int) -> Sample:
        rng = self._rng(index)
        group, beside = self._drawn(rng)
        loaded = self.augment(load_records(group, self.cache), rng)
        if beside:
            joined = mosaic(loaded, self.augment(load_records(beside, self.cache), rng))
            loaded = joined if joined is not None else loaded
        return self.encoder.encode(loaded)


class RecordSet(Dataset):
    """Every record once, as it stands (evaluation)."""

    def __init__(self, *, records: list[Record], encoder: SampleEncoder, cache_mb: float = 64) -> None:
        self.records, self.encoder, self.cache = records, encoder, FileCache(cache_mb)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.encoder.encode(load_records((self.records[index],), self.cache))


def spread(records: list[Record], limit: int) -> list[Record]:
    """At most `limit` records in their order, drawn with a fixed seed (every k-th would pick the same kind of question); 0 = all."""
    if not limit or len(records) <= limit:
        return records
    return [records[i] for i in sorted(np.random.default_rng(0).choice(len(records), size=limit, replace=False))]
