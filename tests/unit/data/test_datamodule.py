"""Records that stages of one command share."""

from __future__ import annotations

import json
import os
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import write_toy

from medplib.data.datamodule import DataModule
from medplib.errors import InputError


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "data", images=4)["grounding"]


def test_a_file_is_read_once_for_modules_that_follow(train: Path) -> None:
    first, second = DataModule(train=(str(train),)), DataModule(train=(str(train),), val=(str(train),))
    assert all(a is b for a, b in zip(first.train_records, second.train_records, strict=True))
    assert second.val_records == second.train_records
    assert first.counts == second.counts == {str(train): len(first.train_records)}
    assert first.train_records is not second.train_records, "a module may order or cut its own list"


def test_a_file_that_has_changed_is_read_again(train: Path) -> None:
    first = DataModule(train=(str(train),))
    train.write_text(json.dumps(json.loads(train.read_text())[:-1]), encoding="utf-8")
    assert len(DataModule(train=(str(train),)).train_records) == len(first.train_records) - 1


def test_a_file_of_the_same_size_that_has_changed_is_read_again(train: Path) -> None:
    before = train.stat()
    DataModule(train=(str(train),))
    train.write_text(train.read_text().replace("<image>", "<imagE>", 1), encoding="utf-8")
    os.utime(train, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    with pytest.raises(InputError, match="<image>"):
        DataModule(train=(str(train),))


def test_only_the_files_of_the_module_before_are_kept(train: Path, tmp_path: Path) -> None:
    other = write_toy(tmp_path / "other", images=4)["grounding"]
    first = DataModule(train=(str(train),))
    DataModule(train=(str(other),))
    again = DataModule(train=(str(train),))
    assert again.train_records == first.train_records
    assert all(a is not b for a, b in zip(first.train_records, again.train_records, strict=True))


def test_a_file_that_is_gone_is_an_error(train: Path) -> None:
    DataModule(train=(str(train),))
    train.unlink()
    with pytest.raises(InputError, match="No such file"):
        DataModule(train=(str(train),))


@pytest.mark.parametrize(("records", "ranks", "batch"), [(5, 2, 2), (5, 2, 1), (4, 2, 2), (1, 2, 4), (7, 3, 2), (3, 4, 1), (8, 1, 3)])
def test_ranks_validate_as_many_batches_and_every_record_once(train: Path, records: int, ranks: int, batch: int) -> None:
    batches, counted = set(), []
    for rank in range(ranks):
        data = DataModule(train=(str(train),), val=(str(train),), val_limit=records, batch_size=batch)
        assert len(data.val_records) == records
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
        data._loader = lambda held, sampler, drop_last: held  # what is read is tested elsewhere
        held = data.val_dataloader().records
        batches.add(ceil(len(held) / batch))
        counted += [id(r) for number, r in enumerate(held) if not data.is_filling(number // batch)]
    assert len(batches) == 1
    assert sorted(counted) == sorted(id(r) for r in data.val_records)
