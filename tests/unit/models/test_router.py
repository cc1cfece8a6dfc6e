"""The router on bfloat16 rows is as exact as on a float32 copy of them."""

from __future__ import annotations

import pytest
import torch

from medplib.models.precision import bfloat16_parts
from medplib.models.router import Router, _SplitProduct


def test_three_parts_are_the_value() -> None:
    values = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    assert torch.equal(sum(part.double() for part in bfloat16_parts(values, 3)), values.double())


@pytest.mark.parametrize("experts", [2, 8])
def test_split_product_is_that_of_float32(experts: int) -> None:
    torch.manual_seed(0)
    rows, weight, grad = torch.randn(300, 64).bfloat16(), torch.randn(experts, 64), torch.randn(300, experts)
    split, whole = ((rows.clone().requires_grad_(), weight.clone().requires_grad_()) for _ in range(2))
    found, wanted = _SplitProduct.apply(*split), torch.nn.functional.linear(whole[0].float(), whole[1])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(split[1].grad, whole[1].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(split[0].grad, whole[0].grad, rtol=2**-7, atol=2e-4)  # a last bit of bfloat16
    assert (split[0].grad != whole[0].grad).float().mean() < 0.02


def test_weights_are_not_rounded() -> None:
    router = Router(4, 2)
    rows = torch.randn(3, 4).bfloat16()
    wanted = torch.nn.functional.linear(rows.float(), router.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router(rows), wanted)
