"""Processes that work as one: what they find is put together, and the error of one is the error of all, in one line."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest

from medplib.errors import InputError
from medplib.ranks import gathered, joined, rank, start, world_size


def _gather(out: Path) -> None:
    with joined():
        found = gathered([rank(), world_size()])
        Path(out, f"{rank()}.json").write_text(json.dumps(found))


def _one_fails(out: Path) -> None:
    with joined():
        if rank() == 1:
            raise InputError(where="rank", expected="a good file", found="a bad one")
        gathered([])  # would wait for ever
    Path(out, "done").touch()


def _breaks(out: Path) -> None:
    with joined():
        if rank() == 0:
            raise ZeroDivisionError
        time.sleep(600)


def test_all_find_the_same(tmp_path: Path) -> None:
    start(partial(_gather, tmp_path), count=3)
    assert [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)] == [[0, 3, 1, 3, 2, 3]] * 3


def test_error_of_one_is_that_of_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^rank: expected a good file, found a bad one$"):
        start(partial(_one_fails, tmp_path), count=2)
    assert not list(tmp_path.iterdir())


def test_nobody_waits_for_a_process_that_broke(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        start(partial(_breaks, tmp_path), count=2)


def test_alone() -> None:
    with joined():
        assert (rank(), world_size(), gathered([1, 2])) == (0, 1, [1, 2])
