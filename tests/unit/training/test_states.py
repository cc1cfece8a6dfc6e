"""What a resume point holds: whole tensors by name, taken over as copies."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from medplib.errors import InputError
from medplib.training.optim import build_optimizer
from medplib.training.stage import OptimConfig
from medplib.training.states import take_states, whole_states
from medplib.training.zero import MOMENTS, _one_step

HERE = SingleDeviceStrategy(torch.device("cpu"))


def stepped(*, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A matrix under Muon, a vector under AdamW, one that never has a gradient, one that does not train, and running statistics."""
    torch.manual_seed(steps)
    parts = {"projector": nn.Linear(8, 8), "region": nn.Linear(2, 2), "vision": nn.Linear(2, 2), "seg_projector": nn.BatchNorm1d(8)}
    model = nn.ModuleDict(parts)
    model["vision"].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(OptimConfig(muon=("projector",)), [(n, p) for n, p in model.named_parameters() if p.requires_grad])
    for _ in range(steps):
        optimizer.zero_grad()
        model["seg_projector"](model["projector"](torch.randn(4, 8))).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_another_process_takes_the_same_bits() -> None:
    model, optimizer = stepped(steps=3)
    point = {name: tensor.clone() for name, tensor in whole_states(HERE, model, optimizer).items()}
    assert "optimizer.momentum.projector.weight" in point
    assert "optimizer.exp_avg.projector.bias" in point
    assert "weights.seg_projector.running_mean" in point
    assert not any("vision" in name or name.startswith("optimizer.step.region") for name in point)
    other, its_optimizer = stepped(steps=0)
    take_states(HERE, other, its_optimizer, point)
    taken = whole_states(HERE, other, its_optimizer)
    assert taken.keys() == point.keys()
    for name, tensor in point.items():
        assert torch.equal(taken[name], tensor), name
        assert taken[name].data_ptr() != tensor.data_ptr(), name


def test_other_tensors_are_refused() -> None:
    model, optimizer = stepped(steps=1)
    point = whole_states(HERE, model, optimizer)
    del point["weights.region.bias"]
    with pytest.raises(InputError, match=r"1 odd, such as region\.bias"):
        take_states(HERE, model, optimizer, point)


def test_zero_counts_the_steps_of_all_parameters_at_once() -> None:
    ones, zeros = ({key: value(2) for key in MOMENTS} for value in (torch.ones, torch.zeros))
    three, two = ones | {"step": torch.tensor(3.0)}, ones | {"step": torch.tensor(2.0)}
    assert _one_step({"a": three, "b": {}, "c": three, "without a gradient": zeros | {"step": torch.tensor(1.0)}}) == 3
    with pytest.raises(InputError, match="b with 2, a with 3"):
        _one_step({"a": three, "b": two})
