"""Several processes that do one thing together: who this one is, what all of them found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from medplib.launch import BOARD, Here, launched, meet

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a rank waits for the slowest one: a set of long answers at full size takes hours."""


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and Here.alone is None


def world_size() -> int:
    """Number of ranks; 1 for a process alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of the ranks this process is, from 0; 0 for a process alone."""
    return distributed.get_rank() if _together() else 0


def gathered(mine: Sequence[T]) -> list[T]:
    """What all ranks have, in the order of the ranks, on each of them; every rank must call it."""
    if world_size() == 1:
        return list(mine)
    found: list[Sequence[T]] = [()] * world_size()
    distributed.all_gather_object(found, mine)
    return [item for part in found for item in part]


def gathered_rows(mine: torch.Tensor) -> list[torch.Tensor]:
    """Rows (n, ...) of every rank, in the order of the ranks, on each of them; n may differ, and every rank must call it."""
    if world_size() == 1:
        return [mine]
    count = torch.tensor([len(mine)], device=mine.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    distributed.all_gather(counts, count)
    lengths = torch.cat(counts).tolist()
    padded = mine.new_zeros(max(lengths), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that were launched together know each other; nothing for a process alone."""
    if not launched():
        yield
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)  # words and scores travel, not tensors of a device
    try:
        yield
    finally:
        distributed.destroy_process_group()


def summed(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of a few values (n,), on each of them, as a new tensor; every rank must call it.

    CPU processes of `start` write on a board and meet, which costs a tenth of a millisecond; a collective over sockets waits for a thread
    that first has to get one of the cores that the ranks keep busy.
    """
    few = len(values) <= BOARD
    if Here.board is None or not few or values.device.type != "cpu" or not _together():
        everyone = values.clone()
        if world_size() > 1:
            distributed.all_reduce(everyone)
        return everyone
    Here.half = half = 1 - Here.half
    Here.board[half, rank(), : len(values)] = values.detach().numpy()
    meet()
    return torch.from_numpy(Here.board[half, :, : len(values)].sum(axis=0)).to(values.dtype)
