"""How options may be spelled."""

from __future__ import annotations

import sys

import pytest

from medplib.errors import command_line


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--region-mask", "a-b.png"], ["--region_mask", "a-b.png"]),
        (["--region-mask=a-b.png", "--question", "left-sided?"], ["--region_mask=a-b.png", "--question", "left-sided?"]),
        (["import", "--options.max-side", "-3", "-h"], ["import", "--options.max_side", "-3", "-h"]),
    ],
)
def test_hyphens_in_the_names_of_options_mean_underscores(monkeypatch, words: list[str], read: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["medplib", *words])
    assert command_line() == read
