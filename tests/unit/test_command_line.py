"""How options may be spelled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medplib import evaluate, plan, predict, prepare
from medplib.errors import command_line, run_command


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


@pytest.mark.parametrize(
    ("module", "words", "found"),
    [
        (predict, ["--nonsense", "1"], "nonsense"),
        (predict, ["--checkpoint", "c", "--question", "q", "--out", "o"], "image"),
        (predict, ["--checkpoint", "c", "--image", "i", "--question", "q", "--out", "o", "--box", "4,4"], '"box"'),
        (evaluate, [], "checkpoint, out"),
        (plan, [], "--config"),
        (plan, ["--config", "c.yaml", "--ranks", "many"], "--ranks"),
        (prepare, ["nonsense"], "choose from 'import'"),
        (prepare, ["import", "--manifest", "m", "--out", "o", "--options.max_side", "many"], "max_side"),
    ],
)
def test_options_that_cannot_be_are_one_line(monkeypatch, capsys, module, words: list[str], found: str) -> None:
    monkeypatch.setattr(sys, "argv", ["medplib", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(module.main)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: command line: expected")
    assert found in lines[0]


@pytest.mark.parametrize(
    ("given", "kind", "several"),
    [
        (None, tuple, ()),
        ((1, 2), tuple, ((1, 2),)),
        ([(1, 2), (3, 4)], tuple, ((1, 2), (3, 4))),
        (Path("a"), Path, (Path("a"),)),
        ([Path("a")], Path, (Path("a"),)),
    ],
)
def test_a_region_may_be_given_once_or_several_times(given, kind, several) -> None:
    assert predict._several(given, kind) == several
