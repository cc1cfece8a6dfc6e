"""Maps at another size: torch's bilinear interpolation, and its gradient, by whatever way they are computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medplib.models.geometry import resized


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (30, 17), (7, 200), (1, 1), (64, 65)])
@pytest.mark.parametrize("maps", [1, 5])
@pytest.mark.parametrize("autocast", [False, True])
def test_resized_is_interpolation(size, maps, autocast):
    torch.manual_seed(0)
    low = torch.randn(maps, 64, 64)
    weight = torch.randn(maps, *size)
    results = []
    for function in (
        lambda x: functional.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0],
        lambda x: resized(x, size),
    ):
        x = low.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = function(x)
        assert out.dtype == torch.float32
        (out * weight).sum().backward()
        results.append((out.detach(), x.grad))
    for ours, reference in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(resized(low, size), results[0][0], atol=1e-6, rtol=0)
