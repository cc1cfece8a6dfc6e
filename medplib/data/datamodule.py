"""Lightning's view of the data: training stream and validation records, built once the model says how it wants to be fed."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from torch.utils.data import DataLoader

from medplib.data.augment import AugmentConfig
from medplib.data.cache import FileCache
from medplib.data.collate import Collator
from medplib.data.dataset import DrawConfig, RecordSet, TrainingSet, spread
from medplib.data.encode import InputSpec, SampleEncoder
from medplib.data.sources import read_records
from medplib.data.stream import StreamSampler
from medplib.errors import InputError
from medplib.types import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_last_read: dict[tuple[object, ...], list[Record]] = {}
"""The records of the data module built last in this process, by file, size and time of change: the next stage often reads the same."""


class DataModule(L.LightningDataModule):
    """Reads all records at construction, so that a bad file is an error before any training.

    Args:
        train, val: JSON files of records; the data root of a file is `root`, or the nearest parent folder with an images/ folder.
        root: data root of all files, when it is not that.
        batch_size: images per step and rank.
        shared_batch: batch_size is of all ranks together, and each takes an equal part: a run means the same on any number of ranks.
        length_window: so many batches of each rank are sorted by length together, so that less is padded; 0 keeps the order of the stream.
        length_step: text is padded to a multiple of so many tokens. Few different lengths suit processors that compile a product for every
            shape, as CPUs do in bfloat16.
        draw, augment: how training samples are made.
        seed: of the training stream.
        workers: loader processes; 0 reads in the main process.
        cache_mb: decoded files kept in memory, per loader process. With no workers the stages of a command share them.
        val_limit: at most so many validation records, drawn with a fixed seed; 0 = all.
    """

    def __init__(
        self,
        train: tuple[str, ...] = (),
        val: tuple[str, ...] = (),
        root: str | None = None,
        batch_size: int = 16,
        shared_batch: bool = False,
        length_window: int = 8,
        length_step: int = 1,
        draw: DrawConfig = DrawConfig(),  # noqa: B008 (frozen)
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
        workers: int = 0,
        cache_mb: float = 512,
        val_limit: int = 256,
    ) -> None:
        super().__init__()
        if not train:
            raise InputError(where="data.train", expected="at least one file of records", found="none")
        self.root = None if root is None else Path(root)
        if length_step < 1:
            raise InputError(where="data.length_step", expected="at least 1", found=str(length_step))
        self.shared_batch, self.length_step = shared_batch, length_step
        self.batch_size, self.length_window, self.draw, self.augment, self.seed = batch_size, length_window, draw, augment, seed
        self.workers, self.cache_mb = workers, cache_mb
        self.counts: dict[str, int] = {}
        known = dict(_last_read)
        _last_read.clear()
        self.train_records = self._read(train, known)
        self.val_records = spread(self._read(val, known), val_limit)
        self._encoder: SampleEncoder | None = None
        self._files = FileCache(cache_mb)
        self._first = (0, 0)

    def _read(self, files: tuple[str, ...], known: dict[tuple[object, ...], list[Record]]) -> list[Record]:
        records: list[Record] = []
        for name in files:
            key = (Path(name).absolute(), self.root, _version(Path(name)))
            read = _last_read[key] = known[key] if key in known else read_records(Path(name), self.root)
            self.counts[name] = len(read)
            records += read
        return records

    def connect(self, *, tokenizer: PreTrainedTokenizerBase, spec: InputSpec, files: FileCache | None = None) -> None:
        """Say how the model wants to be fed; must precede the loaders.

        Args:
            tokenizer: of the model.
            spec: of the model.
            files: decoded for an earlier stage.
        """
        self._encoder = SampleEncoder(tokenizer=tokenizer, spec=spec)
        if files is not None:
            self._files = files
            files.resize(self.cache_mb)

    def batch_of_rank(self, ranks: int) -> int:
        """Samples per step of each of so many ranks.

        Raises:
            InputError: a batch that they cannot share evenly.
        """
        if self.shared_batch and self.batch_size % ranks:
            raise InputError(
                where="data.batch_size", expected=f"a multiple of the {ranks} ranks that share a batch", found=str(self.batch_size)
            )
        return self.batch_size // ranks if self.shared_batch else self.batch_size

    def go_on_at(self, *, epoch: int, batches: int) -> None:
        """Let the training stream begin in `epoch` behind `batches` of its batches; nothing is read again. Before the loader is built."""
        self._first = (epoch, batches)

    def train_dataloader(self) -> DataLoader:
        """The endless training stream, cut into epochs of as many samples as there are images."""
        data = TrainingSet(
            records=self.train_records,
            encoder=self._encoder,
            draw=self.draw,
            augment=self.augment,
            seed=self.seed,
            cache=self._files,
        )
        trainer = self.trainer
        batch_size = self.batch_of_rank(trainer.world_size)
        sampler = StreamSampler(
            max(len(data), batch_size * trainer.world_size),
            batch_size=batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            window=self.length_window,
            size_of=data.text_size,
            seed=self.seed,
            first=self._first,
        )
        return self._loader(data, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader | list:
        """Validation records, one conversation each, shared among ranks; empty when none are configured.

        A rank with one batch less than others gets a record again (`is_filling`), so that all take part in what weights in pieces need.
        """
        if not self.val_records:
            return []
        records, batches = self._own_val_records()
        if batches < ceil(ceil(len(self.val_records) / self.trainer.world_size) / self.batch_of_rank(self.trainer.world_size)):
            records.append(self.val_records[0])
        return self._loader(RecordSet(records=records, encoder=self._encoder), None, drop_last=False)

    def is_filling(self, batch: int) -> bool:
        """Whether validation batch number `batch` of this rank holds a record that another rank has, and must not count."""
        return batch >= self._own_val_records()[1]

    def _own_val_records(self) -> tuple[list[Record], int]:
        """Those of this rank, and in how many batches."""
        own = self.val_records[self.trainer.global_rank :: self.trainer.world_size]
        return own, ceil(len(own) / self.batch_of_rank(self.trainer.world_size))

    def _loader(self, data, sampler, *, drop_last: bool) -> DataLoader:
        return DataLoader(
            data,
            batch_size=self.batch_of_rank(self.trainer.world_size),
            sampler=sampler,
            collate_fn=Collator(self._encoder.text, length_step=self.length_step),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            drop_last=drop_last,
        )


def _version(file: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; None when it cannot be looked at, which its reader says better."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
