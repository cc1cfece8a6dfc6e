"""Files of an evaluation: what several ranks left behind when they were cut off is put together, each answer once."""

from __future__ import annotations

from pathlib import Path

import pytest

from medplib.errors import InputError
from medplib.evaluation.lines import to_line
from medplib.evaluation.results import Answered, Results, ResultStore


def _answer(record: str) -> Answered:
    return Answered(
        record=record, task="vqa_closed", question="?", reference="yes", text="yes", complete=True, lm_logit=0.1, presence_logit=None,
        presence=None, present=None,
    )  # fmt: skip


def _left(folder: Path, name: str, *records: str, cut: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(to_line(_answer(record)) + "\n" for record in records) + cut)


def test_files_of_all_ranks_are_put_together(tmp_path: Path) -> None:
    _left(tmp_path, "predictions.jsonl", "a", "b")
    _left(tmp_path, "predictions.rank1.jsonl", "b", "c", cut='{"record": "d", "ta')  # b: cut off between putting together and removing
    _left(tmp_path, "predictions.rank12.jsonl", "e")
    store = ResultStore(tmp_path, {"run": "1"})
    assert [answer.record for answer in store.known.answers] == ["a", "b", "c", "e"]
    assert not list(tmp_path.glob("*rank*"))
    store.append(Results([_answer("d")]))
    assert [answer.record for answer in ResultStore(tmp_path, {"run": "1"}).known.answers] == ["a", "b", "c", "e", "d"]


def test_finished_files_are_in_the_order_of_the_results(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, {"run": "1"})
    store.append(Results([_answer("b")]))
    store.append(Results([_answer("a")]))
    store.finish(Results([_answer("a"), _answer("b")]))
    assert [answer.record for answer in ResultStore(tmp_path, {"run": "1"}).known.answers] == ["a", "b"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    ResultStore(tmp_path, {"run": "1"})
    with pytest.raises(InputError, match="results of another run"):
        ResultStore(tmp_path, {"run": "2"})
