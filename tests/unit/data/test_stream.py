"""The order of the training stream: nothing is lost or drawn twice, ranks share it, and going on at a batch gives what was left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplib.data.stream import StreamSampler


def _size(position: int) -> int:
    return (position * 2654435761) % 97


def _batches(sampler: StreamSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    return [drawn[i : i + sampler.batch_size] for i in range(0, len(drawn), sampler.batch_size)]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 6), st.integers(0, 70))


@given(shapes, st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_the_ranks_draw_every_sample_of_the_whole_batches_of_an_epoch_once(shape, epoch):
    ranks, size, window, more = shape
    length = ranks * size + more
    drawn = [
        _batches(StreamSampler(length, batch_size=size, rank=r, world_size=ranks, window=window, size_of=_size), epoch)
        for r in range(ranks)
    ]
    whole = length // ranks // size
    assert {len(batches) for batches in drawn} == {whole}
    flat = sorted(i for batches in drawn for batch in batches for i in batch)
    assert flat == list(range(epoch * length, epoch * length + whole * size * ranks))


@given(shapes, st.data())
@settings(max_examples=80, deadline=None)
def test_going_on_at_a_batch_draws_what_was_left_and_then_the_next_epochs(shape, data):
    ranks, size, window, more = shape
    length = ranks * size + more

    def sampler(first: tuple[int, int] | None = None) -> StreamSampler:
        return StreamSampler(length, batch_size=size, rank=ranks - 1, world_size=ranks, window=window, size_of=_size, first=first)

    everything = [batch for epoch in range(3) for batch in _batches(sampler(), epoch)]
    at = data.draw(st.integers(0, len(everything) - 1))
    whole = length // ranks // size
    later = sampler(divmod(at, whole))
    rest = _batches(later, 0)  # what the trainer says of the first epoch does not count
    for epoch in range(at // whole + 1, 3):
        rest += _batches(later, epoch)
    assert rest == everything[at:]


def test_samples_of_one_length_meet_and_the_lengths_come_in_no_order():
    plain, sorted_ = (StreamSampler(960, batch_size=8, window=w, size_of=_size) for w in (0, 12))

    def padded(sampler: StreamSampler) -> float:
        sizes = np.array([[_size(i) for i in batch] for batch in _batches(sampler, 0)])
        return 1 - sizes.mean() / sizes.max(axis=1).mean()

    assert padded(plain) > 0.4
    assert padded(sorted_) < 0.1
    means = [np.mean([_size(i) for i in batch]) for batch in _batches(sorted_, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("window", [0, 5])
def test_neighbours_in_length_go_to_all_ranks_at_one_step(window):
    ranks = [_batches(StreamSampler(240, batch_size=4, rank=r, world_size=2, window=window, size_of=_size), 0) for r in range(2)]
    apart = [abs(np.mean([_size(i) for i in a]) - np.mean([_size(i) for i in b])) for a, b in zip(*ranks, strict=True)]
    assert (np.mean(apart) < 3) == (window == 5)
