"""Several stages in one command: one after the other, by all ranks together or by one rank while the others go on with theirs.

What starting a process costs (seconds of importing) and what it remembers (decoded files) is paid for once in a command.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from medplib.errors import InputError
from medplib.launch import alone, launched, local_rank, meet, start

THEN, RANKS, RANK = "--then", "--ranks", "--rank"

Train = Callable[[list[str]], bool]
"""Trains one stage with these options; whether it was told to stop when all that was left was to finish."""


@dataclass(frozen=True)
class Planned:
    """One stage of a command.

    Args:
        arguments: its options.
        rank: the rank that trains it alone; None = all of them together.
    """

    arguments: tuple[str, ...]
    rank: int | None = None


def planned(words: Sequence[str]) -> tuple[int | None, tuple[Planned, ...]]:
    """Number of ranks, None where it is not given, and the stages of a command line.

    Args:
        words: options of stages with `--then` between them; `--ranks N` belongs to all, `--rank K` to one stage.

    Raises:
        InputError: a number that cannot be.
    """
    ranks, words = _taken(words, RANKS, least=1)
    stages: list[Planned] = []
    begin = 0
    for end in [*(i for i, word in enumerate(words) if word == THEN), len(words)]:
        rank, arguments = _taken(words[begin:end], RANK, least=0)
        stages.append(Planned(tuple(arguments), rank))
        begin = end + 1
    count = ranks or 1
    for rank in {stage.rank for stage in stages} - {None}:
        if rank >= count > 1:  # a process alone does what is meant for others, too
            raise InputError(where=RANK, expected=f"a rank below {count}, of those that {RANKS} starts", found=str(rank))
    return ranks, tuple(stages)


def _taken(words: Sequence[str], option: str, *, least: int) -> tuple[int | None, list[str]]:
    """The whole number behind an option, None where it is not given, and the words without it."""
    left, value, rest = [], None, iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if name != option:
            left.append(word)
            continue
        text = text if equals else next(rest, "nothing")
        if not text.isdecimal() or int(text) < least:
            raise InputError(where=option, expected=f"a whole number from {least}", found=text)
        value = int(text)
    return value, left


def run(words: Sequence[str], train: Train) -> None:
    """Train the stages of a command line.

    Args:
        words: see `planned`.
        train: see `Train`; a function of a module.

    Raises:
        InputError: that of the first stage, or rank, that met one.
        SystemExit: told to stop (SIGTERM) with stages left to train.
    """
    count, stages = planned(words)
    if launched() and (count is not None or any(stage.rank is not None for stage in stages)):
        found = RANK if count is None else f"{RANKS} {count}"
        raise InputError(where="command line", expected="no option for ranks where something else starts them (torchrun)", found=found)
    if count is None or count == 1:
        devices = [] if count is None else ["--trainer.devices", "1"]
        for left, stage in zip(reversed(range(len(stages))), stages, strict=True):
            _stop(train([*stage.arguments, *devices]), left)
        return
    start(partial(_as_rank, train, stages, count), count=count)


def _as_rank(train: Train, stages: Sequence[Planned], count: int) -> None:
    mine = [stage for stage in stages if stage.rank in (None, local_rank())]
    for left, stage in zip(reversed(range(len(mine))), mine, strict=True):
        if stage.rank is None:
            meet()  # a rank that trained something alone may be hours behind
            told = train([*stage.arguments, "--trainer.num_nodes", "1", "--trainer.devices", str(count)])
        else:
            with _by_itself():
                told = train([*stage.arguments, "--trainer.strategy", "auto", "--trainer.num_nodes", "1", "--trainer.devices", "1"])
        _stop(told, left)


def _stop(told: bool, left: int) -> None:
    """Who is told to stop does not begin another stage."""
    if told and left:
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Lightning takes this process for the only one, which logs and writes."""
    from lightning.pytorch.utilities import rank_zero_only

    before = rank_zero_only.rank
    rank_zero_only.rank = 0
    try:
        with alone():
            yield
    finally:
        rank_zero_only.rank = before
