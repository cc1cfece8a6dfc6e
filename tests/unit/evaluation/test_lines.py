from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medplib.errors import InputError
from medplib.evaluation.lines import from_line, read_lines, to_line, write_lines
from medplib.evaluation.segmentation import GroundingScore
from medplib.evaluation.text import TextCase, TextScore, text_score


@dataclass(frozen=True)
class Row:
    id: str
    kind: Literal["a", "b"]
    n: int
    flag: bool
    value: float
    maybe: float | None


GOOD = Row("x", "a", 3, True, 0.25, None)


@given(st.text(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.none() | st.floats(0, 1))
def test_round_trip(text, n, value, maybe):
    row = Row(text, "b", n, False, value, maybe)
    line = to_line(row)
    assert "\n" not in line
    assert from_line(Row, line, where="f:1") == row


def test_file_round_trip_with_line_separators(tmp_path):
    rows = [GOOD, replace(GOOD, id="line\u2028separator\nand newline", maybe=0.5)]
    assert write_lines(tmp_path / "s.jsonl", rows) == 2
    assert read_lines(tmp_path / "s.jsonl", Row) == rows
    write_lines(tmp_path / "none.jsonl", [])
    assert read_lines(tmp_path / "none.jsonl", Row) == []


def test_whole_number_becomes_the_float_of_the_field():
    restored = from_line(Row, to_line(GOOD).replace("0.25", "1"), where="f:1")
    assert isinstance(restored.value, float)


@pytest.mark.parametrize(
    "change",
    [{"n": "3"}, {"n": True}, {"n": 1.5}, {"flag": 1}, {"kind": "c"}, {"value": None}, {"maybe": "0.1"}, {"extra": 1}, {"id": None}],
)
def test_bad_fields_are_refused(change):
    stored = json.loads(to_line(GOOD)) | change
    with pytest.raises(InputError, match=r"preds\.jsonl:7"):
        from_line(Row, json.dumps(stored), where="preds.jsonl:7")


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "null", "{}", to_line(GOOD).replace("0.25", "NaN"), to_line(GOOD).replace("0.25", "1e999")]
)
def test_bad_lines_are_refused(line):
    with pytest.raises(InputError, match="f:1"):
        from_line(Row, line, where="f:1")


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(to_line(GOOD) + "\n\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"s\.jsonl:2"):
        read_lines(path, Row)
    with pytest.raises(InputError, match=r"gone\.jsonl"):
        read_lines(tmp_path / "gone.jsonl", Row)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_lines(path, Row)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.jsonl"
    write_lines(path, [GOOD])
    with pytest.raises(InputError, match="finite"):
        write_lines(path, [GOOD, replace(GOOD, value=math.nan)])
    assert read_lines(path, Row) == [GOOD]
    assert [p.name for p in tmp_path.iterdir()] == ["s.jsonl"]


def test_real_scores_round_trip():
    text = text_score(TextCase("q", "r", "s", "p", "ct", "open", "the left kidney", "left kidney"))
    assert from_line(TextScore, to_line(text), where="f:1") == text
    score = GroundingScore("strict", "i", "r", "s", "", "ct", "liver", 0, "absent", True, False, 0, 4, 4, 0, 16, 0.0, 0.0, None, 0.5)
    assert from_line(GroundingScore, to_line(score), where="f:1") == score
    with pytest.raises(InputError, match="status"):
        from_line(GroundingScore, to_line(score).replace('"absent"', '"gone"'), where="f:1")
