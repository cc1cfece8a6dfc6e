import pytest
import torch

from medplib.models.config_grounding import ConvConfig, DecoderConfig, GrounderConfig
from medplib.models.conv_encoder import ConvBlock, build_conv_encoder


def build(stem_stride=2, size=64):
    torch.manual_seed(0)
    conv = ConvConfig(stem_stride=stem_stride, widths=(8, 12, 16, 24), context_heads=2)
    return build_conv_encoder(GrounderConfig(kind="conv", image_size=size, embed_dim=32, conv=conv, decoder=DecoderConfig(heads=2)))


@pytest.mark.parametrize(("stem_stride", "size", "grid"), [(2, 64, 8), (2, 96, 12), (4, 128, 8)])
def test_shapes(stem_stride, size, grid):
    features = build(stem_stride, size)(torch.randn(2, 3, size, size), torch.randn(2, 6))
    assert features.embedding.shape == (2, 32, grid, grid)
    assert [skip.shape for skip in features.skips] == [(2, 12, 2 * grid, 2 * grid), (2, 8, 4 * grid, 4 * grid)]


def test_every_parameter_learns():
    encoder = build()
    features = encoder(torch.randn(2, 3, 64, 64), torch.randn(2, 6))
    sum(map(torch.Tensor.sum, (features.embedding.square(), *(skip.square() for skip in features.skips)))).backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None or parameter.grad.abs().max() == 0]
    # key biases of attention never matter: softmax ignores what is common to all keys; they are inside in_proj_bias
    assert without == []


def test_it_knows_place():
    """The same texture everywhere must not give the same features everywhere, or left and right could not be told apart."""
    encoder = build().eval()
    tile = torch.randn(1, 3, 16, 16).repeat(1, 1, 4, 4)
    embedding = encoder(tile, torch.zeros(1, 6)).embedding
    assert (embedding[..., 3, 2] - embedding[..., 3, 4]).abs().max() > 0.02  # same phase of the tiling, left and right of the middle


def test_it_knows_raw_intensity():
    encoder = build().eval()
    pixels = torch.randn(1, 3, 64, 64)
    dark, bright = (encoder(pixels, torch.full((1, 6), value)).embedding for value in (-1.0, 1.0))
    assert (dark - bright).abs().max() > 0.02


def test_images_do_not_influence_one_another():
    encoder = build().train()
    pixels, statistics = torch.randn(3, 3, 64, 64), torch.randn(3, 6)
    together = encoder(pixels, statistics)
    alone = encoder(pixels[1:2], statistics[1:2])
    torch.testing.assert_close(together.embedding[1:2], alone.embedding, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.skips[1][1:2], alone.skips[1], atol=1e-5, rtol=1e-5)


def test_block_halves_when_asked():
    assert ConvBlock(4, 6, stride=2)(torch.randn(1, 4, 8, 8)).shape == (1, 6, 4, 4)
    assert ConvBlock(4, 6)(torch.randn(1, 4, 8, 8)).shape == (1, 6, 8, 8)
