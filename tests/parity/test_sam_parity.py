"""Against values computed by the official MedPLIB code with random weights (see the shapes in data/sam_med2d/config.json)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medplib.models.config_grounding import DecoderConfig, GrounderConfig, VitConfig
from medplib.models.grounding import PixelGrounder, build_grounder
from medplib.models.sam import official_sam_key, sam_med2d_keys

DATA = Path(__file__).parent / "data" / "sam_med2d"
IMAGE_INDEX = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in load_file(DATA / "state_dict.safetensors").items()}


@pytest.fixture(scope="module")
def grounder(weights) -> PixelGrounder:
    sizes = json.loads((DATA / "config.json").read_text())
    config = GrounderConfig(
        image_size=sizes["image_size"],
        vit=VitConfig(
            width=sizes["embed_dim"],
            depth=sizes["depth"],
            heads=sizes["num_heads"],
            window_size=sizes["window_size"],
            global_blocks=tuple(sizes["global_attn_indexes"]),
        ),
        decoder=DecoderConfig(mlp_dim=sizes["decoder_mlp_dim"]),
    )
    grounder = build_grounder(config).eval()
    keys = sam_med2d_keys(weights)
    grounder.load_state_dict({keys[name]: value for name, value in weights.items()}, strict=True)
    return grounder.requires_grad_(False)


@pytest.fixture(scope="module")
def inputs():
    return load_file(DATA / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(DATA / "outputs.safetensors")


@pytest.fixture(scope="module")
def features(grounder, inputs):
    return grounder.image_encoder(inputs["images"].float(), torch.zeros(2, 6))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_every_block_and_the_embedding(grounder, inputs, expected):
    blocks = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: blocks.append(out)) for block in grounder.image_encoder.vit.blocks]
    features = grounder.image_encoder(inputs["images"].float(), torch.zeros(2, 6))
    for hook in hooks:
        hook.remove()
    assert len(blocks) == 4
    for i, block in enumerate(blocks):
        close(block[:1], expected[f"block_{i}_out"], 2e-5)
    close(features.embedding, expected["image_embeddings"], 2e-5)


def test_positions_and_prompts(grounder, inputs, expected):
    close(grounder.prompt_encoder.get_dense_pe(), expected["dense_pe"], 2e-5)
    close(grounder.prompt_points(inputs["point_coords"], inputs["point_labels"]), expected["points_sparse"], 2e-5)
    close(grounder.prompt_boxes(inputs["box"]), expected["box_sparse"], 2e-5)


def test_masks_of_all_pairs_in_one_call(grounder, features, inputs, expected):
    found = grounder.decode(features, IMAGE_INDEX, inputs["prompts"].repeat(2, 1))
    close(found.low_res_logits.view(2, 3, 1, 32, 32), expected["low_res_logits"], 5e-5)
    close(found.quality.view(2, 3, 1), expected["iou"], 5e-5)


def test_alternative_masks(grounder, features, inputs, expected):
    sparse = inputs["prompts"].repeat(2, 1)[:, None]
    found = grounder.decode_tokens(features, IMAGE_INDEX, sparse, None, masks=4)
    close(found.logits[:3, 1:], expected["multimask_logits_img0"], 5e-5)
    close(found.quality[:, 1:].reshape(2, 3, 3), expected["multimask_iou"], 5e-5)


@pytest.mark.parametrize("kind", ["points", "box"])
def test_masks_of_points_and_boxes(grounder, features, inputs, expected, kind):
    if kind == "points":
        sparse = grounder.prompt_points(inputs["point_coords"], inputs["point_labels"])
    else:
        sparse = grounder.prompt_boxes(inputs["box"])
    found = grounder.decode(features, torch.tensor([0]), sparse)
    close(found.low_res_logits[:, None], expected[f"{kind}_low_res_logits"], 5e-5)
    close(found.quality[:, None], expected[f"{kind}_iou"], 5e-5)


def test_names_map_both_ways(grounder, weights):
    keys = sam_med2d_keys(weights)
    assert set(keys.values()) == set(grounder.state_dict())
    assert {official_sam_key(ours): ours for ours in grounder.state_dict()} == keys
