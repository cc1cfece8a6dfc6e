"""What `--ranks`, `--then` and `--rank` of the training command mean."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest
from torch import distributed

from medplib.errors import InputError
from medplib.ranks import rank, world_size
from medplib.schedule import Planned, planned, run


@pytest.mark.parametrize(
    ("words", "count", "stages"),
    [
        ("--config a", None, [("--config a", None)]),
        ("", None, [("", None)]),
        ("--config a --then --config b --lr 3", None, [("--config a", None), ("--config b --lr 3", None)]),
        ("--ranks 2 --config a", 2, [("--config a", None)]),
        ("--config a --ranks=3 --then --config b", 3, [("--config a", None), ("--config b", None)]),
        ("--ranks 2 a --then b --rank 0 --then --rank=1 c --then d", 2, [("a", None), ("b", 0), ("c", 1), ("d", None)]),
        ("a --then --rank 1 b", None, [("a", None), ("b", 1)]),  # one process does what others might
        ("--ranks 1 --rank 5 a", 1, [("a", 5)]),
        ("--rank_of_lora 4 --rank 0 --rank 1 a", None, [("--rank_of_lora 4 a", 1)]),  # the last one counts, as with other options
    ],
)
def test_command_lines(words: str, count: int | None, stages: list[tuple[str, int | None]]) -> None:
    assert planned(words.split()) == (count, tuple(Planned(tuple(of.split()), alone) for of, alone in stages))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ranks 0 a", "--ranks: expected a whole number from 1, found 0"),
        ("--ranks many a", "--ranks: expected a whole number from 1, found many"),
        ("a --ranks", "--ranks: expected a whole number from 1, found nothing"),
        ("a --rank -1", "--rank: expected a whole number from 0, found -1"),
        ("a --then b --rank=", "--rank: expected a whole number from 0, found "),
        ("--ranks 2 a --then --rank 2 b", "--rank: expected a rank below 2, of those that --ranks starts, found 2"),
    ],
)
def test_numbers_that_cannot_be(words: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        run(words.split(), lambda arguments: pytest.fail("trained"))
    assert str(error.value).strip() == said.strip()


def test_one_process_trains_everything_in_order() -> None:
    trained: list[list[str]] = []
    run(["a", "1", "--then", "--rank", "1", "b", "--then", "c"], lambda arguments: trained.append(arguments) is not None)
    assert trained == [["a", "1"], ["b"], ["c"]]
    run(["--ranks", "1", "a"], lambda arguments: trained.append(arguments) is not None)
    assert trained[3:] == [["a", "--trainer.devices", "1"]]  # whatever accelerators there are


def test_who_is_told_to_stop_begins_no_other_stage() -> None:
    trained: list[list[str]] = []
    with pytest.raises(SystemExit) as stopped:
        run(["a", "--then", "b", "--then", "c"], lambda arguments: trained.append(arguments) or arguments == ["b"])
    assert (stopped.value.code, trained) == (143, [["a"], ["b"]])
    run(["a", "--then", "b"], lambda arguments: arguments == ["b"])  # all is done, so nothing was stopped


def _note(out: Path, arguments: list[str]) -> bool:
    """Stands for the training of a stage."""
    started, alone = time.monotonic(), "RANK" not in os.environ
    if not alone and not distributed.is_initialized():
        distributed.init_process_group("gloo")  # as a strategy does; it stays, also while a rank is alone
    mine = rank()
    if arguments[0] == "slow":
        time.sleep(2)
    if arguments[0] == "bad":
        raise InputError(where="stage", expected="a good one", found="a bad one")
    about = f"{mine} of {world_size()} {started} {time.monotonic()} {' '.join(arguments[1:])}"
    Path(out, f"{arguments[0]}-{os.getpid()}").write_text(about)
    return False


def test_ranks_train_together_and_alone(tmp_path: Path) -> None:
    words = "first --then --rank 0 quick --then --rank 1 slow --then --rank 1 next --then last"
    run(["--ranks", "2", *words.split()], partial(_note, tmp_path))
    found: dict[str, list[list[str]]] = {}
    for path in sorted(tmp_path.iterdir()):
        found.setdefault(path.name.split("-")[0], []).append(path.read_text().split())
    of = {stage: sorted((" ".join(words[:3]), " ".join(words[5:])) for words in notes) for stage, notes in found.items()}
    common = "--trainer.num_nodes 1 --trainer.devices 2"
    single = [("0 of 1", "--trainer.strategy auto --trainer.num_nodes 1 --trainer.devices 1")]
    both = [("0 of 2", common), ("1 of 2", common)]
    assert of == {"first": both, "last": both, "quick": single, "slow": single, "next": single}
    began, ended = ({stage: [float(words[i]) for words in notes] for stage, notes in found.items()} for i in (3, 4))
    assert ended["quick"][0] < ended["slow"][0] < began["next"][0]
    assert min(began["last"]) > ended["next"][0] - 0.1  # the quick rank waited; Linux processes share this clock
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 2  # the same two processes throughout


def test_a_bad_stage_of_one_rank_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^stage: expected a good one, found a bad one$"):
        run(["--ranks", "2", "--rank", "0", "slow", "--then", "--rank", "1", "bad", "--then", "last"], partial(_note, tmp_path))
    assert not list(tmp_path.glob("last*"))


def test_ranks_are_not_started_by_ranks(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["--ranks", "2", "a"], ["a", "--then", "--rank", "1", "b"]):
        with pytest.raises(InputError, match="torchrun"):
            run(words, lambda arguments: pytest.fail("trained"))
