import torch
from torch import nn

from medplib.models.config_grounding import DecoderConfig, GrounderConfig, VitConfig
from medplib.models.sam import Adapter, AdapterMLP, build_sam_encoder, official_sam_key, sam_med2d_keys

VIT = VitConfig(width=16, depth=2, heads=2, patch_size=16, window_size=3, global_blocks=(1,))


def config(**changes) -> GrounderConfig:
    return GrounderConfig(
        image_size=64, embed_dim=32, vit=VitConfig(**{**vars(VIT), **changes}), decoder=DecoderConfig(heads=2, mlp_dim=16)
    )


def test_adapter_matches_its_formula():
    torch.manual_seed(0)
    adapter, x = Adapter(8), torch.randn(2, 4, 6, 8)
    gate = torch.sigmoid(torch.relu(x.mean((1, 2)) @ adapter.channel[0].weight.T) @ adapter.channel[2].weight.T)
    half = torch.conv2d((x * gate[:, None, None]).permute(0, 3, 1, 2), adapter.spatial[0].weight, stride=2, padding=1).relu()
    spatial = torch.conv_transpose2d(half, adapter.spatial[2].weight, stride=2, padding=1).relu().permute(0, 2, 3, 1)
    torch.testing.assert_close(adapter(x), nn.functional.layer_norm(x + spatial, (8,)))
    assert all(parameter.dim() != 1 or "norm" in name for name, parameter in adapter.named_parameters())  # no biases


def test_adapter_mlp_adds_both():
    x = torch.randn(1, 2, 2, 3)
    torch.testing.assert_close(AdapterMLP(nn.Identity(), nn.Tanh())(x), x + x.tanh())


def test_encoder_shapes_and_gradients():
    encoder = build_sam_encoder(config())
    statistics = torch.randn(2, 6)
    features = encoder(torch.randn(2, 3, 64, 64), statistics)
    assert features.embedding.shape == (2, 32, 4, 4)
    assert features.skips == ()
    assert features.statistics is statistics
    features.embedding.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_positions_differ_between_cells_before_training():
    """segment-anything initialises them to zero, from which a transformer cannot tell cells apart."""
    assert build_sam_encoder(config()).vit.pos_embed.std(dim=(1, 2)).min() > 0.005


def test_key_map():
    names = [
        "image_encoder.blocks.0.mlp.lin1.weight",
        "image_encoder.blocks.0.Adapter.channel.0.weight",
        "image_encoder.blocks.1.mlp.lin2.bias",
        "image_encoder.blocks.1.norm1.bias",
        "image_encoder.neck.0.weight",
        "mask_decoder.transformer.layers.0.mlp.lin1.weight",
        "prompt_encoder.no_mask_embed.weight",
    ]
    keys = sam_med2d_keys(names)
    assert list(keys.values()) == [
        "image_encoder.vit.blocks.0.mlp.mlp.lin1.weight",
        "image_encoder.vit.blocks.0.mlp.adapter.channel.0.weight",
        "image_encoder.vit.blocks.1.mlp.lin2.bias",  # this block has no adapter
        "image_encoder.vit.blocks.1.norm1.bias",
        "image_encoder.vit.neck.0.weight",
        "mask_decoder.transformer.layers.0.mlp.lin1.weight",
        "prompt_encoder.no_mask_embed.weight",
    ]
    assert [official_sam_key(ours) for ours in keys.values()] == names


def test_key_map_covers_models_with_and_without_adapters():
    for adapter in (True, False):
        ours = ["image_encoder." + name for name in build_sam_encoder(config(adapter=adapter)).state_dict()]
        official = [official_sam_key(name) for name in ours]
        assert any("Adapter" in name for name in official) == adapter
        assert list(sam_med2d_keys(official).values()) == ours
