"""The mixture of experts: forcing, renormalised and probability gates, padding, gradients, balance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medplib.errors import InputError
from medplib.models.moe import (
    MoEConfig,
    MoEMLP,
    Routing,
    forced_expert,
    load_balancing_loss,
    router_z_loss,
    task_routing_loss,
    tokens_of_experts,
)
from medplib.training.ranks import balanced_over_ranks
from medplib.types import RouterStats

NAMES = ("a", "b", "c")


def _layer(top_k: int = 1, gate: str = "renormalised") -> tuple[MoEMLP, Routing]:
    torch.manual_seed(0)
    routing = Routing()
    experts = {name: nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)) for name in NAMES}
    layer = MoEMLP(experts=experts, config=MoEConfig(experts=NAMES, top_k=top_k, gate=gate), width=8, routing=routing)
    nn.init.normal_(layer.router.weight, std=1.0)
    return layer, routing


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("gate", ["renormalised", "probability"])
def test_equals_the_dense_definition(top_k: int, gate: str) -> None:
    layer, routing = _layer(top_k, gate)
    x = torch.randn(2, 5, 8)
    routing.start(None)
    found = layer(x)
    probs = (x @ layer.router.weight.T).softmax(-1)
    weight, chosen = probs.topk(top_k, dim=-1)
    if gate == "renormalised":
        weight = weight / weight.sum(-1, keepdim=True)
    dense = torch.stack([expert(x) for expert in layer.experts.values()], dim=-2)
    wanted = (torch.gather(dense, 2, chosen[..., None].expand(*chosen.shape, 8)) * weight[..., None]).sum(2)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("gate", ["renormalised", "probability"])
def test_fixed_shapes_give_the_same(top_k: int, gate: str) -> None:
    layer, routing = _layer(top_k, gate)
    x = torch.randn(2, 5, 8)
    routing.start(None)
    wanted = layer.eval()(x)
    routing.fixed_shapes = True
    torch.testing.assert_close(layer(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_halves_take_the_same_ways_and_have_their_gradients(top_k: int) -> None:
    """In bfloat16 on a CPU experts get rows of zeros besides, which must reach neither outputs nor gradients."""
    found = []
    for halves in (False, True):
        layer, routing = _layer(top_k)
        torch.manual_seed(1)
        x = torch.randn(2, 5, 8, requires_grad=True)
        routing.start(torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
        lengths = []
        for expert in layer.experts.values():
            expert.register_forward_pre_hook(lambda _, given, seen=lengths: seen.append(len(given[0])))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=halves):
            out = layer(x)
        out.float().square().sum().backward()
        assert all(length % 8 == 0 for length in lengths) is halves
        found.append((out.detach().float(), x.grad, *(p.grad for p in layer.experts.parameters())))
    for exact, rough in zip(*found, strict=True):
        torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)


def test_an_only_expert_is_not_scaled_and_the_router_learns_as_if_it_were() -> None:
    layer, routing = _layer()
    x = torch.randn(1, 6, 8)
    routing.start(None)
    out = layer(x)
    rows = x[0]
    weight, chosen = (rows @ layer.router.weight.T).softmax(-1).max(dim=-1, keepdim=True)
    alone = torch.cat([layer.experts[NAMES[int(e)]](row[None]) for row, e in zip(rows, chosen, strict=True)])
    torch.testing.assert_close(out[0], alone, rtol=1e-6, atol=1e-6)
    grad = torch.randn_like(alone)
    (scaled,) = torch.autograd.grad(alone * weight, layer.router.weight, grad, retain_graph=True)
    (found,) = torch.autograd.grad(out[0], layer.router.weight, grad)
    torch.testing.assert_close(found, scaled, rtol=1e-5, atol=1e-6)


def test_padding_is_not_routed_and_gets_nothing() -> None:
    layer, routing = _layer()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    routing.start(mask)
    out = layer(torch.randn(2, 3, 8))
    assert torch.equal(out[~mask], torch.zeros(3, 8))
    assert routing.stats().chosen.shape == (1, 3, 1)


def test_forcing_is_the_expert_itself() -> None:
    layer, routing = _layer()
    x = torch.randn(1, 4, 8)
    with forced_expert(routing, NAMES, "b"):
        routing.start(None)
        assert torch.equal(layer(x), layer.experts["b"](x))
        assert routing.stats() is None
    assert routing.forced is None
    with pytest.raises(InputError, match="one of a, b, c"), forced_expert(routing, NAMES, "z"):
        pass


@pytest.mark.parametrize("gate", ["renormalised", "probability"])
def test_router_and_every_expert_get_gradients(gate: str) -> None:
    layer, routing = _layer(1, gate)
    layer.train()
    routing.start(None)
    layer(torch.randn(1, 2, 8)).square().sum().backward()  # two tokens: at least one expert is not chosen
    assert layer.router.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in layer.experts.parameters())


def test_load_balancing_loss() -> None:
    even = RouterStats(torch.full((1, 4, 2), 0.5), torch.tensor([[[0], [1], [0], [1]]]), torch.zeros(1))
    skewed = RouterStats(torch.tensor([[[1.0, 0.0]] * 4]), torch.zeros(1, 4, 1, dtype=torch.int64), torch.zeros(1))
    assert float(load_balancing_loss(even)) == pytest.approx(1.0)
    assert float(load_balancing_loss(skewed)) == pytest.approx(2.0)


def test_load_balancing_loss_does_not_depend_on_how_ranks_share_tokens() -> None:
    torch.manual_seed(0)
    probs, chosen = torch.rand(3, 10, 4).softmax(-1), torch.randint(4, (3, 10, 2))
    whole, *parts = (RouterStats(probs[:, part], chosen[:, part], torch.zeros(3)) for part in (slice(None), slice(7), slice(7, None)))
    tokens_LE = sum(tokens_of_experts(part) for part in parts)
    torch.testing.assert_close(tokens_LE.sum(dim=-1), torch.full((3,), 20.0))
    mean = sum(load_balancing_loss(part, tokens_LE) * part.probs.shape[1] for part in parts) / 10
    torch.testing.assert_close(mean, load_balancing_loss(whole))


@pytest.mark.parametrize(
    ("wanted", "loss"),
    [
        ([0, 1, -1], -(math.log(0.8) + math.log(0.3)) / 2),
        ([0, 1, 1], -(math.log(0.8) + (math.log(0.3) + math.log(0.6)) / 2) / 2),
        ([1, -1, -1], -math.log(0.2)),
        ([-1, -1, -1], 0.0),
    ],
)
def test_task_routing_loss(wanted: list[int], loss: float) -> None:
    stats = RouterStats(torch.tensor([[[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]]), torch.zeros(1, 3, 1, dtype=torch.int64), torch.zeros(1))
    assert float(balanced_over_ranks(*task_routing_loss(stats, torch.tensor(wanted)))) == pytest.approx(loss, abs=1e-6)


def test_tasks_name_experts() -> None:
    with pytest.raises(InputError, match=r"moe\.tasks.*found segment"):
        MoEConfig(experts=("grounding", "vl"), tasks={"grounding": "segment"})


def test_z_loss_is_that_of_the_logits() -> None:
    routing = Routing()
    layer = MoEMLP(experts={name: nn.Linear(8, 8) for name in ("a", "b")}, config=MoEConfig(experts=("a", "b")), width=8, routing=routing)
    rows = torch.randn(1, 5, 8)
    routing.start(None)
    layer(rows)
    logits = rows[0] @ layer.router.weight.T
    assert float(router_z_loss(routing.stats())) == pytest.approx(float(logits.exp().sum(-1).log().square().mean()), rel=1e-5)
