"""The order in which an endless training stream is drawn: a function of the position alone, so that resuming is counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class StreamSampler(Sampler[int]):
    """Positions of the endless stream for one rank: epoch e covers samples e * length to (e + 1) * length.

    With a `window`, samples of about one length meet in a batch: the positions of so many batches of all ranks are sorted by length and cut
    into batches, which come in a random order. Each window holds the same samples as without; only who meets whom changes, so nothing is
    drawn more or less often. The batches of the ranks at one step are neighbours, so that no rank waits for a longer one.

    Args:
        length: samples of an epoch, over all ranks.
        batch_size: samples per batch and rank; what is left of an epoch behind the last whole batch is not drawn.
        rank, world_size: this rank among how many.
        window: batches per rank that are sorted together; 0 or 1 keeps the order of the stream.
        size_of: position -> anything that grows with the length of the sample; needed with a window.
        seed: of the order of the batches inside a window.
        first: (epoch, batches of it that are skipped) to begin at, whatever epoch is said when the first sample is drawn.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        window: int = 0,
        size_of: Callable[[int], int] | None = None,
        seed: int = 0,
        first: tuple[int, int] | None = None,
    ) -> None:
        self.length, self.batch_size, self.rank, self.world_size, self.epoch = length, batch_size, rank, world_size, 0
        self.window, self.size_of, self.seed = window, size_of, seed
        self._first = first

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    @property
    def _batches(self) -> int:
        """Whole batches of an epoch and rank; at least one."""
        return max(1, len(self) // self.batch_size)

    def __iter__(self) -> Iterator[int]:
        (epoch, skip), self._first = self._first or (self.epoch, 0), None
        start, step = epoch * self.length, self.batch_size * self.world_size
        together = max(1, self.window)
        for first in range(skip - skip % together, self._batches, together):
            count = min(together, self._batches - first)
            positions = np.arange(start + first * step, start + (first + count) * step)
            batches = self._sorted(positions) if self.window > 1 else positions.reshape(count, step)
            for batch in batches[max(0, skip - first) :]:
                yield from batch[self.rank :: self.world_size].tolist()

    def _sorted(self, positions: np.ndarray) -> np.ndarray:
        """(batches, samples of all ranks): neighbours in length together, the batches in a random order."""
        sizes = np.array([self.size_of(int(position)) for position in positions])
        batches = positions[np.argsort(sizes, kind="stable")].reshape(-1, self.batch_size * self.world_size)
        return batches[np.random.default_rng([self.seed, int(positions[0])]).permutation(len(batches))]

    def __len__(self) -> int:
        return self.length // self.world_size
