"""Gradients averaged through shared memory: the means over ranks, whoever has none, step after step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from medplib.ranks import joined, rank, start, summed, world_size
from medplib.training import neighbours
from medplib.training.neighbours import NoSharedMemoryError, SharedGradients, take_over
from medplib.training.strategy import changes_buffers


def _tell(said: str) -> str:
    box = [said]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def _gradient(step: int, of: int, index: int, shape: torch.Size) -> torch.Tensor | None:
    """None for some: rank 0 leaves out every second parameter in some steps, nobody ever has the last one."""
    if index == 3 or (step % 2 and of == 0 and index == 1):
        return None
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + 10 * index + of)) * 10.0 ** (index - 2)


def _averages() -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (), (2, 2))]
    with joined():
        shared, ranks = SharedGradients(parameters, _tell), world_size()
        for step in range(7):
            for index, parameter in enumerate(parameters):
                parameter.grad = _gradient(step, rank(), index, parameter.shape)
            shared.average()
            for index, parameter in enumerate(parameters):
                all_of = [_gradient(step, of, index, parameter.shape) for of in range(ranks)]
                there = [gradient for gradient in all_of if gradient is not None]
                if not there:
                    assert parameter.grad is None
                    continue
                torch.testing.assert_close(parameter.grad, sum(there) / ranks, rtol=1e-6, atol=0)
                parameter.grad.mul_(-1e6)  # what a rank does with its mean is its own business
        assert not list(Path("/dev/shm").glob("medplib-gradients-*")) if Path("/dev/shm").is_dir() else True


@pytest.mark.parametrize("count", [2, 3])
def test_means_over_ranks(count: int) -> None:
    start(_averages, count=count)


def _takes_over() -> None:
    torch.manual_seed(rank_before := int(os.environ["RANK"]))
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    model.register_buffer("flags", torch.arange(5) % 2 == rank_before)
    model.register_buffer("one", torch.tensor(rank_before))
    model.register_buffer("turned", torch.randn(4, 3).mT)
    with joined():
        take_over(model)
        state = {name: tensor.float().tolist() for name, tensor in model.state_dict().items()}
        found: list[dict] = [{}] * world_size()
        distributed.all_gather_object(found, state)
        assert found[0] == found[1]
        assert found[0]["one"] == 0


def test_every_rank_begins_with_the_weights_of_the_first() -> None:
    start(_takes_over, count=2)


def _sums() -> None:
    mine = 1.0 + float(os.environ["RANK"])
    assert summed(torch.tensor([mine])).item() == mine  # not yet one of a group
    with joined():
        for step in range(5):
            values = torch.tensor([mine, 0.1 * step, -mine])
            expected = torch.tensor([6.0, 3 * torch.tensor(0.1 * step).item(), -6.0])
            assert torch.equal(summed(values), expected.float())
            assert values[0] == mine
        assert summed(torch.tensor([2, 3])).tolist() == [6, 9]


def test_few_values_are_summed() -> None:
    start(_sums, count=3)
    assert summed(torch.tensor([2.0])).item() == 2.0


def test_no_room_is_said_and_leaves_nothing(monkeypatch, tmp_path: Path) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(neighbours, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoSharedMemoryError, match=r"^1 MiB of shared memory: No space left on device$"):
        SharedGradients([nn.Parameter(torch.zeros(2**17))], lambda said: said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "frozen", "changing"),
    [
        (nn.BatchNorm2d(4), False, True),
        (nn.BatchNorm2d(4), True, False),
        (nn.BatchNorm2d(4, affine=False), False, True),
        (nn.BatchNorm2d(4, track_running_stats=False), False, False),
        (nn.GroupNorm(2, 4), False, False),
    ],
)
def test_which_steps_change_buffers(layer: nn.Module, frozen: bool, changing: bool) -> None:
    layer.requires_grad_(not frozen)
    assert changes_buffers(nn.Sequential(nn.Conv2d(3, 4, 1), layer)) is changing
