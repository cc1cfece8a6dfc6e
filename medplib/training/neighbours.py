"""Gradients averaged through memory that the ranks of one machine share, for CPU ranks that one command has started.

Between processes that keep all cores busy, a collective over sockets waits for a thread that first has to get a core: some ten milliseconds
of a small step (docs/experiments.md). Here the ranks write side by side, meet once, and each adds up for itself.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import distributed, nn

from medplib.launch import meet
from medplib.ranks import rank, world_size

_SHARED_MEMORY = Path("/dev/shm")
_SQUARES = 8
"""About so many products of square matrices are made of the Gram matrix of one (three iterations of Newton and Schulz)."""
_WORTH = 10**8
"""Multiplications from which on work is divided: a quarter of what the demo's image encoder takes, twice what its adapters take."""

Compute = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Matrices -> as many of the same shapes."""


class NoSharedMemoryError(Exception):
    """The machine has too little memory that processes can share."""


class SharedGradients:
    """What R ranks know of each other's gradients.

    Everything is written twice in turn: who is in a step has met the others behind the step before, so nobody still reads what lies two
    steps back, and one meeting a step is enough.

    Args:
        parameters: those that train, float32, in one order on all ranks, P of them with V values together.
        tell: gives all ranks what rank 0 says.

    Raises:
        NoSharedMemoryError: there is no room; on all ranks.
    """

    def __init__(self, parameters: list[nn.Parameter], tell: Callable[[str], str]) -> None:
        self.parameters, self.mine, ranks = parameters, rank(), world_size()
        sizes = [parameter.numel() for parameter in parameters]
        values, flags = 2 * ranks * sum(sizes), 2 * ranks * len(sizes)
        memory = _shared(4 * values + flags, tell)
        self.values = torch.frombuffer(memory, dtype=torch.float32, count=values).view(2, ranks, -1)  # (2, R, V)
        self.flags = torch.frombuffer(memory, dtype=torch.uint8, count=flags, offset=4 * values).view(2, ranks, -1)  # (2, R, P)
        rows = [turn[self.mine].split(sizes) for turn in self.values]
        self.views = [[part.view(p.shape) for part, p in zip(row, parameters, strict=True)] for row in rows]
        self.sizes, self._turn = sizes, 0

    @torch.no_grad()
    def average(self) -> None:
        """Replace the gradients by their means over ranks; one that is nowhere stays None, as a missing one counts as zero."""
        self._turn = turn = 1 - self._turn
        here = [parameter.grad is not None for parameter in self.parameters]
        self.flags[turn, self.mine] = torch.tensor(here, dtype=torch.uint8)
        own = list(zip(self.views[turn], self.parameters, strict=True))
        torch._foreach_copy_([view for view, p in own if p.grad is not None], [p.grad for _, p in own if p.grad is not None])
        for view, parameter in own:
            if parameter.grad is None:
                view.zero_()
        meet()
        rows = self.values[turn]
        mean = rows[0] + rows[1]
        for row in rows[2:]:
            mean += row
        mean /= len(rows)
        found = self.flags[turn].any(dim=0).tolist()
        for parameter, there, part in zip(self.parameters, found, mean.split(self.sizes), strict=True):
            parameter.grad = part.view(parameter.shape) if there else None


class DividedWork:
    """Matrices that ranks compute for each other: each a share, and behind one meeting all of them have all.

    One meeting is enough, because all ranks meet once more (`SharedGradients.average`) before anything is written over.

    Args:
        parameters: whose matrices they will be, one of its size for each.
        tell: gives all ranks what rank 0 says.

    Raises:
        NoSharedMemoryError: there is no room; on all ranks.
    """

    def __init__(self, parameters: list[nn.Parameter], tell: Callable[[str], str]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        values = torch.frombuffer(_shared(4 * sum(sizes), tell), dtype=torch.float32)
        self._place = dict(zip(parameters, values.split(sizes), strict=True))

    def all_of(self, compute: Compute, parameters: list[nn.Parameter], matrices: list[torch.Tensor]) -> list[torch.Tensor]:
        """What `compute` makes of the matrices (rows, columns) of some parameters, each for itself, float32; valid until the next call.

        Little work is done by every rank: a meeting would cost as much.
        """
        of = _dealt(tuple(matrix.shape for matrix in matrices), world_size())
        if of is None:
            return compute(matrices)
        mine = [k for k, whose in enumerate(of) if whose == rank()]
        for k, found in zip(mine, compute([matrices[k] for k in mine]) if mine else (), strict=True):
            self._place[parameters[k]].view(found.shape).copy_(found)
        meet()
        return [self._place[parameter].view(matrix.shape) for parameter, matrix in zip(parameters, matrices, strict=True)]


@lru_cache(maxsize=16)
def _dealt(shapes: tuple[tuple[int, int], ...], ranks: int) -> tuple[int, ...] | None:
    """Which rank computes each matrix: the costliest first, each to who has least to do; None where that is not worth while."""
    costs = [min(shape) ** 2 * (2 * max(shape) + _SQUARES * min(shape)) for shape in shapes]
    if sum(costs) < _WORTH:
        return None
    load, of = [0] * ranks, [0] * len(shapes)
    for k in sorted(range(len(shapes)), key=lambda k: (-costs[k], k)):
        of[k] = load.index(min(load))
        load[of[k]] += costs[k]
    return tuple(of)


def _shared(size: int, tell: Callable[[str], str]) -> mmap.mmap:
    """Memory of so many bytes that all ranks of this machine see; it has no name any more when this returns."""
    path = said = ""
    try:
        if rank() == 0:
            try:
                descriptor, path = tempfile.mkstemp(prefix="medplib-gradients-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)
                with os.fdopen(descriptor, "r+b") as file:
                    _reserve(file.fileno(), size)
                said = path
            except OSError as error:
                said = f"error: {error.strerror}"
        said = tell(said)
        if said.startswith("error: "):
            raise NoSharedMemoryError(f"{size / 2**20:.0f} MiB of shared memory: {said.removeprefix('error: ')}")
        with open(said, "r+b") as file:
            memory = mmap.mmap(file.fileno(), size)
        meet()
        return memory
    finally:
        if path:
            os.unlink(path)


def _reserve(descriptor: int, size: int) -> None:
    """Make a file so long, with its pages where the system can promise them: a page that is missing later would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


@torch.no_grad()
def take_over(model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, byte by byte."""
    tensors = [*model.parameters(), *model.buffers()]
    pieces = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors]
    packed = torch.cat(pieces)
    distributed.broadcast(packed, src=0)
    for tensor, piece in zip(tensors, packed.split([len(piece) for piece in pieces]), strict=True):
        tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))
