import pytest

from medplib.errors import InputError
from medplib.models.config_grounding import ConvConfig, DecoderConfig, GrounderConfig, VitConfig

BAD = [
    ({"kind": "unet"}, "kind"),
    ({"normalisation": "none"}, "normalisation"),
    ({"image_size": 72}, "image_size"),
    ({"image_size": 48}, "image_size"),  # 3 patches: the adapter needs an even grid
    ({"kind": "conv", "image_size": 72}, "image_size"),
    ({"kind": "conv", "image_size": 16}, "image_size"),
    ({"kind": "conv", "conv": ConvConfig(stem_stride=3)}, "conv.stem_stride"),
    ({"kind": "conv", "conv": ConvConfig(widths=(8, 8, 8))}, "conv.widths"),
    ({"kind": "conv", "conv": ConvConfig(widths=(8, 8, 8, 10))}, "conv.widths"),
    ({"embed_dim": 36}, "embed_dim"),
    ({"vit": VitConfig(width=50)}, "vit.width"),
    ({"vit": VitConfig(patch_size=2)}, "vit.patch_size"),
    ({"decoder": DecoderConfig(high_resolution=True)}, "decoder.high_resolution"),
    ({"kind": "conv", "decoder": DecoderConfig(subpixel=True)}, "decoder.subpixel"),
    ({"kind": "conv", "decoder": DecoderConfig(upscaled_width=8)}, "decoder.upscaled_width"),
    ({"kind": "conv", "decoder": DecoderConfig(residual=True)}, "decoder.residual"),
]


@pytest.mark.parametrize(("changes", "option"), BAD)
def test_contradictory_sizes_are_named(changes, option):
    with pytest.raises(InputError, match=rf"^grounder\.{option}:"):
        GrounderConfig(**{"image_size": 64, **changes})
