"""Our linear layer with an adapter beside peft's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from medplib.training.lora import ADAPTER, adapt
from medplib.training.stage import LoraOptions


def _pair(*, dropout: float, bias: bool) -> tuple[nn.Module, nn.Module]:
    """The same layer with the same random adapters, ours and peft's."""
    torch.manual_seed(0)
    ours = nn.Sequential()
    ours.add_module("proj", nn.Linear(24, 40, bias=bias))
    peer = deepcopy(ours)
    adapt(ours, ["proj"], LoraOptions(r=4, alpha=6, dropout=dropout, targets=("proj",)))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["proj"], bias="none"), peer)
    for name, parameter in peer.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            nn.init.normal_(parameter)
    assert ours.load_state_dict(peer.state_dict()).missing_keys == []
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return ours, peer


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24)])
def test_outputs_and_gradients_are_those_of_peft(dropout: float, bias: bool, shape: tuple[int, ...]) -> None:
    ours, peer = _pair(dropout=dropout, bias=bias)
    results = []
    for layer in (ours, peer):
        torch.manual_seed(1)
        x = torch.randn(shape, requires_grad=True)
        out = layer.train()(x)
        weight = torch.linspace(-1, 1, 40)
        given = [x, *(p for p in layer.parameters() if p.requires_grad)]
        results.append([out, *torch.autograd.grad((out * weight).sum(), given)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_weights_of_two_types_work_without_autocast() -> None:
    ours, _ = _pair(dropout=0.0, bias=False)
    exact = ours(torch.ones(2, 24))
    ours.proj.base_layer.to(torch.bfloat16)
    ours.proj.lora_A[ADAPTER].to(torch.bfloat16)
    out = ours(torch.ones(2, 24, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("needed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_types_meet_under_autocast(needed: bool, dropout: float) -> None:
    ours, peer = _pair(dropout=dropout, bias=True)
    for layer in (ours, peer):
        layer.proj.base_layer.to(torch.bfloat16)
    results = []
    for layer in (ours, peer):
        torch.manual_seed(1)
        x = torch.randn(7, 24, requires_grad=needed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer.train()(x)
        given = [*([x] if needed else []), *(p for p in layer.parameters() if p.requires_grad)]
        results.append([out, *torch.autograd.grad(out.sum(), given)])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine, theirs, rtol=0.05, atol=0.2)


def test_compiled_is_the_same() -> None:
    ours, _ = _pair(dropout=0.0, bias=False)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = torch.randn(7, 24)
    assert torch.allclose(torch.compile(ours, backend=backend, fullgraph=True)(x), ours(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
