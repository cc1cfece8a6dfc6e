"""Several stages in one command: one after the other, by all ranks together or by one rank while the others go on with theirs.

What starting a process costs (seconds of importing) and what it remembers (decoded files) is paid for once in a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from medplib.errors import InputError
from medplib.ranks import alone, launched, local_rank, meet, start

THEN, RANKS, RANK = "--then", "--ranks", "--rank"

Train = Callable[[list[str]], None]


@dataclass(frozen=True)
class Planned:
    """One stage of a command.

    Args:
        arguments: its options.
        rank: the rank that trains it alone; None = all of them together.
    """

    arguments: tuple[str, ...]
    rank: int | None = None


def planned(words: Sequence[str]) -> tuple[int, tuple[Planned, ...]]:
    """Number of ranks and the stages of a command line.

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
    return count, tuple(stages)


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
        train: trains one stage, a function of a module; its arguments are the options of the stage.

    Raises:
        InputError: that of the first stage, or rank, that met one.
    """
    count, stages = planned(words)
    if count == 1:
        for stage in stages:
            train(list(stage.arguments))
        return
    if launched():
        raise InputError(where=RANKS, expected="no such option where something else starts the ranks (torchrun)", found=str(count))
    start(partial(_as_rank, train, stages, count), count=count)


def _as_rank(train: Train, stages: Sequence[Planned], count: int) -> None:
    for stage in stages:
        if stage.rank is None:
            meet()  # a rank that trained something alone may be hours behind
            train([*stage.arguments, "--trainer.devices", str(count)])
        elif stage.rank == local_rank():
            devices = _own_device(local_rank())
            with _by_itself():
                train([*stage.arguments, "--trainer.devices", devices])


def _own_device(rank: int) -> str:
    import torch

    return f"[{rank}]" if torch.cuda.is_available() else "1"


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
