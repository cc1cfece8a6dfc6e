"""Reading ahead of the model."""

from __future__ import annotations

import threading

import pytest

from medplib.errors import InputError
from medplib.evaluation.runner import _ahead


def test_the_next_item_is_read_while_one_is_used() -> None:
    second = threading.Event()

    def read(item: int) -> int:
        if item == 1:
            second.set()
        return item * 10

    found = []
    for value in _ahead(read, [0, 1, 2]):
        assert second.wait(timeout=10), "nobody reads while the first is used"
        found.append(value)
    assert found == [0, 10, 20]
    assert list(_ahead(read, [])) == []


def test_a_bad_file_is_met_in_its_turn_and_nothing_before_it_is_lost() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise InputError(where="record 2", expected="a PNG", found="a truncated one")
        return item

    values = _ahead(read, [0, 1, 2, 3])
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(InputError, match="record 2"):
        next(values)
