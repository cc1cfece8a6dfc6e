"""The grounder beside values of the published SAM-Med2D code."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import torch
from safetensors.torch import load_file

from medplib.convert.sizes import sam_sizes
from medplib.models.grounding import PixelGrounder, build_grounder
from medplib.models.mask_decoder import decode_pairs
from medplib.models.sam import sam_med2d_keys
from tests.parity.fixtures import DATA, Row, difference, golden_tensors

FOLDER = DATA / "sam_med2d"
IMAGE_INDEX = torch.tensor([0, 0, 0, 1, 1, 1])


def grounder() -> PixelGrounder:
    """Our grounder with the fixture's weights."""
    weights = {name: value.float() for name, value in load_file(FOLDER / "state_dict.safetensors").items()}
    keys = sam_med2d_keys(weights)
    built = build_grounder(sam_sizes({keys[name]: tuple(value.shape) for name, value in weights.items()}, prefix=""))
    built.load_state_dict({keys[name]: value for name, value in weights.items()}, strict=True)
    return built.eval().requires_grad_(False)


def sam_rows() -> Iterator[Row]:
    """Blocks, embedding, positions, prompts, masks of texts, points and boxes, and SAM's alternative masks."""
    built, inputs, expected = grounder(), load_file(FOLDER / "inputs.safetensors"), golden_tensors(FOLDER / "outputs.safetensors")
    blocks: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: blocks.append(out)) for block in built.image_encoder.vit.blocks]
    features = built.image_encoder(inputs["images"].float(), torch.zeros(2, 6))
    for hook in hooks:
        hook.remove()
    for index, block in enumerate(blocks):
        yield Row("SAM", f"block_{index}_out", difference(block[:1], expected[f"block_{index}_out"]), 1e-4, 2e-5)
    yield Row("SAM", "image_embeddings", difference(features.embedding, expected["image_embeddings"]), 1e-4, 2e-5)
    yield Row("SAM", "dense_pe", difference(built.prompt_encoder.get_dense_pe(), expected["dense_pe"]), 1e-4, 2e-5)
    sparse = {
        "points": built.prompt_points(inputs["point_coords"], inputs["point_labels"]),
        "box": built.prompt_boxes(inputs["box"]),
    }
    prompts = inputs["prompts"].repeat(2, 1)
    with mock.patch("medplib.models.grounding.decode_pairs", wraps=decode_pairs) as decoder:
        texts = built.decode(features, IMAGE_INDEX, prompts)
    given = decoder.call_args.kwargs
    dense = expected["dense_prompt"]
    yield Row("SAM", "dense_prompt", difference(given["dense"].expand_as(dense), dense), 1e-4, 2e-5)
    yield Row("SAM", "sparse_prompt_last", difference(given["sparse"][-1:], expected["sparse_prompt_last"]), 1e-4, 2e-5)
    others = built.decode_tokens(features, IMAGE_INDEX, prompts[:, None], None, masks=4)
    found = {
        "low_res_logits": texts.low_res_logits.view(2, 3, 1, 32, 32),
        "iou": texts.quality.view(2, 3, 1),
        "multimask_logits_img0": others.logits[:3, 1:],
        "multimask_iou": others.quality[:, 1:].reshape(2, 3, 3),
    }
    for kind, prompt in sparse.items():
        yield Row("SAM", f"{kind}_sparse", difference(prompt, expected[f"{kind}_sparse"]), 1e-4, 2e-5)
        masks = built.decode(features, torch.tensor([0]), prompt)
        found |= {f"{kind}_low_res_logits": masks.low_res_logits[:, None], f"{kind}_iou": masks.quality[:, None]}
    for name, value in found.items():
        yield Row("SAM", name, difference(value, expected[name]), 5e-4, 5e-5)
