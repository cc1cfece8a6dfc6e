"""The high-resolution end of the mask decoder: products in the order of cells, against the convolutions that they are."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medplib.models.features import ImageFeatures
from medplib.models.mask_decoder import HighResUpscaling, Quartering, as_cells, as_maps


def test_subpixel_product_is_a_convolution_and_a_pixel_shuffle():
    torch.manual_seed(0)
    upscaling = HighResUpscaling(32, fine=4, skip_widths=(6, 4), subpixel=True)
    torch.nn.init.normal_(upscaling.subpixel.weight)
    weights, features = torch.randn(2, 3, 4), torch.randn(2, 4, 12, 12)
    kernel = upscaling.subpixel.weight.view(4, 4, 4)  # (sub-pixel, fine out, fine in of the hypernetwork)
    convolution = torch.einsum("soi,nohw->nishw", kernel, features).flatten(1, 2)
    expected = torch.einsum("nki,nihw->nkhw", weights, F.pixel_shuffle(convolution, 2))
    torch.testing.assert_close(upscaling.product(weights, as_cells(features, 2)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_cells_are_quarters_of_quarters_and_maps_their_inverse(levels):
    maps = torch.arange(2 * 3 * 24 * 24).view(2, 3, 24, 24)
    cells, coarse = as_cells(maps, levels), 24 >> levels
    assert cells.shape == (2, 24 * 24, 3)
    assert torch.equal(as_maps(cells, levels), maps)
    squares = cells.unflatten(1, (coarse * coarse, -1))  # the second cell of the grid is the second square of its first row
    side = 1 << levels
    assert torch.equal(squares[:, 1].sort(dim=1).values, maps[:, :, :side, side : 2 * side].flatten(2).mT)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_quartering_is_a_transposed_convolution(count):
    torch.manual_seed(0)
    layer, maps = Quartering(6, 4, 2, stride=2), torch.randn(count, 6, 8, 8, requires_grad=True)
    found = as_maps(layer(as_cells(maps, 1)), 2)
    expected = F.conv_transpose2d(maps, layer.weight, layer.bias, stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    for one, other in zip(
        *(torch.autograd.grad((out * weights).sum(), [maps, *layer.parameters()]) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subpixel", [False, True])
def test_upscaling_is_transposed_convolutions_with_skips(subpixel):
    torch.manual_seed(0)
    upscaling = HighResUpscaling(16, fine=4, skip_widths=(6, 5), subpixel=subpixel)
    features = ImageFeatures(torch.randn(2, 16, 4, 4), (torch.randn(2, 6, 8, 8), torch.randn(2, 5, 16, 16)), torch.randn(2, 6))
    index, source = torch.tensor([1, 0, 1]), torch.randn(3, 16, 4, 4)
    middle, fine = (skip[index] for skip in upscaling.refined(features).skips)
    x = F.leaky_relu(F.conv_transpose2d(source, upscaling.up1.weight, upscaling.up1.bias, stride=2) + middle)
    x = F.leaky_relu(F.conv_transpose2d(x, upscaling.up2.weight, upscaling.up2.bias, stride=2) + fine)
    cells = upscaling(source.flatten(2).mT, features, index)
    torch.testing.assert_close(as_maps(cells, 2), x, rtol=1e-5, atol=1e-5)
    if not subpixel:
        weights = torch.randn(3, 2, 4)
        torch.testing.assert_close(upscaling.product(weights, cells), torch.einsum("nkc,nchw->nkhw", weights, x), rtol=1e-5, atol=1e-5)


def test_subpixel_starts_from_the_coarser_map():
    upscaling = HighResUpscaling(32, fine=4, skip_widths=(6, 4), subpixel=True)
    logits = upscaling.product(torch.randn(1, 1, 4), torch.randn(1, 64, 4))
    assert torch.equal(logits[..., ::2, ::2], logits[..., 1::2, 1::2])
