"""The optimiser: Muon's update against its definition, groups by part, and closures that zero gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from medplib.errors import InputError
from medplib.training.optim import build_optimizer, is_matrix, orthogonalised, rate_factor
from medplib.training.stage import OptimConfig


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (96, 288)])
def test_orthogonalised_keeps_directions_and_levels_singular_values(shape):
    torch.manual_seed(0)
    # Four decades of singular values: far from orthogonal.
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    scales = torch.logspace(0, -1.5, min(shape), dtype=torch.float64)
    matrix = (u * scales) @ v
    result = orthogonalised([matrix])[0].double()
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.3
    # The polar factor of the matrix is u v: the result has the same singular vectors.
    inner = u.T @ result @ v.T
    assert torch.allclose(inner, torch.diag(torch.diagonal(inner)), atol=1e-3)


@pytest.mark.parametrize(("iterations", "smallest"), [(1, 1 / 5), (3, 1 / 60), (5, 1 / 700)])
def test_iterations_say_which_singular_values_are_levelled(iterations, smallest):
    values = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64) * smallest
    values = torch.cat([values, (1 - values.square().sum()).clamp(min=0).sqrt()[None]])  # of a matrix of norm one
    result = torch.diagonal(orthogonalised([torch.diag(values)], iterations=iterations)[0])
    assert (result[values > smallest] > 0.65).all()
    assert (result[values < smallest] < 0.65).all()


@pytest.mark.parametrize("iterations", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(64, 64), (160, 400), (400, 160)])
def test_products_in_bfloat16_give_nearly_the_same(shape, iterations):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = (u * torch.logspace(0, -2, min(shape))) @ v
    exact = orthogonalised([matrix], iterations=iterations)[0]
    rough = orthogonalised([matrix], iterations=iterations, dtype=torch.bfloat16)[0]
    assert rough.dtype == torch.float32
    assert float(torch.linalg.matrix_norm(rough - exact) / torch.linalg.matrix_norm(exact)) < 0.06
    assert float(torch.linalg.svdvals(rough).max()) < 1.3


@pytest.mark.parametrize("iterations", [0, -1])
def test_no_iteration_is_refused(iterations):
    with pytest.raises(InputError, match="muon_iterations"):
        build_optimizer(OptimConfig(muon_iterations=iterations), [])


@pytest.mark.parametrize("iterations", [2, 5])
def test_the_optimiser_iterates_as_configured(iterations):
    weight = nn.Parameter(torch.zeros(8, 8))
    config = OptimConfig(muon=("projector",), muon_lr=1.0, muon_iterations=iterations)
    optimizer = build_optimizer(config, [("projector.weight", weight)])
    weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    expected = orthogonalised([weight.grad.clone()], iterations=iterations)[0]  # a first momentum points where the gradient does
    optimizer.step()
    torch.testing.assert_close(-weight.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_that_share_products_are_treated_one_by_one(dtype):
    """Two of one shape, one that shares their smaller side turned, one of another height."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(10, 24), (10, 24), (40, 10), (7, 9)]]
    together = orthogonalised(matrices, dtype=dtype)
    for matrix, result in zip(matrices, together, strict=True):
        assert result.shape == matrix.shape
        torch.testing.assert_close(result, orthogonalised([matrix], dtype=dtype)[0], atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


def test_zero_gradient_moves_nothing():
    assert torch.equal(orthogonalised([torch.zeros(8, 8)])[0], torch.zeros(8, 8))


def test_no_matrix_is_no_work():
    assert orthogonalised([]) == []


@pytest.mark.parametrize(
    ("shape", "expected"), [((8, 8), True), ((16, 3, 3, 3), True), ((16, 2, 1, 1), False), ((4, 64), False), ((64,), False)]
)
def test_is_matrix(shape, expected):
    assert is_matrix(nn.Parameter(torch.zeros(shape))) is expected


def _parameters() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    shapes = {
        "grounder.image_encoder.conv.weight": (16, 8, 3, 3),
        "grounder.image_encoder.conv.bias": (16,),
        "grounder.mask_decoder.transformer.q.weight": (16, 16),
        "names.words.weight": (32, 16),
    }
    return [(name, nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]


def test_groups_by_part_and_kind():
    config = OptimConfig(
        lr=1e-3, lr_by_part={"grounder": 1e-4, "grounder.mask_decoder": 1e-5}, muon=("grounder.image_encoder",), muon_lr=0.02
    )
    groups = {group["name"]: group for group in build_optimizer(config, _parameters()).param_groups}
    sizes = {name: [tuple(p.shape) for p in group["params"]] for name, group in groups.items()}
    assert sizes == {"muon": [(16, 8, 3, 3)], "grounder": [(16,)], "grounder.mask_decoder": [(16, 16)], "all_else": [(32, 16)]}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "muon": 0.02, "grounder": 1e-4, "grounder.mask_decoder": 1e-5, "all_else": 1e-3,
    }  # fmt: skip


def test_closure_sees_every_group():
    """A closure zeroes the gradients of all groups; were the groups divided before it runs, those of Muon would add up over steps."""
    parameters = _parameters()
    optimizer = build_optimizer(OptimConfig(lr=1e-3, muon=("grounder.image_encoder",)), parameters)
    seen = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for _, p in parameters)
        loss.backward()
        seen.append([float((p.grad - 2 * p).abs().max()) for _, p in parameters])
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert max(max(step) for step in seen) == 0.0
    assert losses[0] > losses[1] > losses[2]


def test_state_survives_a_checkpoint():
    def run(steps: int, restart: int | None) -> list[torch.Tensor]:
        parameters = _parameters()
        optimizer = build_optimizer(OptimConfig(lr=1e-2, muon=("grounder.image_encoder",)), parameters)
        for step in range(steps):
            if step == restart:
                state = optimizer.state_dict()
                optimizer = build_optimizer(OptimConfig(lr=1e-2, muon=("grounder.image_encoder",)), parameters)
                optimizer.load_state_dict(state)
            for _, p in parameters:
                p.grad = torch.sin(p.detach() * 7 + step)
            optimizer.step()
        return [p.detach() for _, p in parameters]

    for kept, whole in zip(run(6, 3), run(6, None), strict=True):
        assert torch.equal(kept, whole)


def test_rate_warms_up_and_ends_at_zero():
    config = OptimConfig(warmup=0.1, schedule="cosine")
    factors = [rate_factor(config, step, 100) for step in range(101)]
    assert (factors[0], max(factors), factors[100]) == pytest.approx((0.1, 1.0, 0.0), abs=1e-9)
    assert all(a >= b for a, b in pairwise(factors[10:]))
