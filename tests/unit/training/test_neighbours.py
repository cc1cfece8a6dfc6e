"""Gradients averaged through shared memory: the means over ranks, whoever has none, step after step."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from medplib.launch import start
from medplib.ranks import joined, rank, summed, world_size
from medplib.training import neighbours
from medplib.training.neighbours import DividedWork, NoSharedMemoryError, SharedGradients, _dealt, take_over
from medplib.training.optim import orthogonalised
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


SHAPES = ((8, 72), (8, 72), (16, 8), (12, 30), (12, 5), (20, 20))


def _divides(together: str) -> None:
    neighbours._WORTH = 0
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    with joined():
        divided, computed = DividedWork(parameters, _tell), []

        def compute(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
            computed.extend(matrix.shape for matrix in matrices)
            return orthogonalised(matrices, iterations=3, dtype=torch.bfloat16)

        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            matrices = [torch.randn(shape, generator=generator) for shape in SHAPES]
            some = range(step % 2, len(SHAPES))  # a part that a step leaves out has no gradient anywhere
            found = divided.all_of(compute, [parameters[k] for k in some], [matrices[k] for k in some])
            wanted = orthogonalised([matrices[k] for k in some], iterations=3, dtype=torch.bfloat16)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
            summed(torch.zeros(1))  # as the next step's gradients
        with open(together, "a") as file:
            file.write(f"{len(computed)}\n")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_ranks_compute_matrices_for_each_other(tmp_path: Path, count: int) -> None:
    start(partial(_divides, str(tmp_path / "counts")), count=count)
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert sum(counts) == 3 * len(SHAPES) - 1
    assert max(counts) < sum(counts)


def test_matrices_are_dealt_by_cost() -> None:
    shapes = ((160, 1440), (1440, 160), (128, 1152), (32, 288), (64, 576), (160, 1152))
    costs = [min(shape) ** 2 * (2 * max(shape) + 8 * min(shape)) for shape in shapes]
    of = _dealt(shapes, 2)
    loads = [sum(cost for cost, whose in zip(costs, of, strict=True) if whose == one) for one in range(2)]
    assert max(loads) < 1.2 * min(loads)
    assert _dealt(shapes, 1) == (0,) * len(shapes)
    assert _dealt(((32, 128),) * 80, 2) is None
    assert _dealt((), 2) is None


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
