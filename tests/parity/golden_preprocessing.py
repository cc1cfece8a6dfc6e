"""Published preprocessing of real images beside this project's: pixels, region grids, token ids and labels.

The images stay where they are: a folder is passed in, and nothing of it is part of the project.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medplib.convert.template import EVALUATION, TRAINING
from medplib.convert.tokenizer import published_tokenizer
from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import SampleEncoder
from medplib.data.sources.mecovqa import read_mecovqa
from medplib.models.config_grounding import GrounderConfig, VitConfig
from medplib.models.grounding import build_grounder
from medplib.models.vision import VisionConfig, VisionEncoder
from medplib.tokens import IMAGE_PLACEHOLDER
from medplib.types import InputSpec
from tests.parity.fixtures import Row, difference

TEMPLATES = {"llava_v1": TRAINING, "v1": EVALUATION}
EXACT = 1e-5  # a grey level is 0.015 at least
CLIP = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 14}


class _Stop(Exception):  # noqa: N818 (no error)
    pass


def _received(encoder: nn.Module, call: Callable[[], object]) -> torch.Tensor:
    """The normalised pixels that an encoder is handed; it does not run."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Stop

    hook = encoder.register_forward_pre_hook(stop)
    with torch.no_grad(), suppress(_Stop):
        call()
    hook.remove()
    return seen[0]


def preprocessing_rows(folder: Path) -> Iterator[Row]:
    """Rows for every image and conversation of the fixture folder."""
    tokenizer = published_tokenizer(folder / "tokenizer")
    text = json.loads((folder / "expected_text.json").read_text())
    expected = np.load(folder / "expected_tensors.npz")
    ids = text["tokenizer"]["ids"]
    yield Row("tokenizer", "ids of added tokens", float(any(tokenizer.convert_tokens_to_ids(t) != i for t, i in ids.items())), 0, 0)
    records = read_mecovqa(folder / "conversations.json", folder)
    cache = FileCache(64)
    vision = VisionEncoder(VisionConfig(kind="clip", image_size=336, grid=24, hf_config=CLIP))
    grounder = build_grounder(GrounderConfig(kind="sam", image_size=256, vit=VitConfig(width=16, depth=1, heads=2, global_blocks=(0,))))
    for index, (record, wanted) in enumerate(zip(records, text["samples"], strict=True)):
        for name, template in TEMPLATES.items():
            spec = InputSpec(vision_size=336, image_tokens=576, region_grid=24, sam_size=256, template=template, legacy=True)
            sample = SampleEncoder(tokenizer=tokenizer, spec=spec).encode(load_records((record,), cache))
            one = torch.cat(
                [torch.tensor([True]), ~((sample.input_ids[1:] == IMAGE_PLACEHOLDER) & (sample.input_ids[:-1] == IMAGE_PLACEHOLDER))]
            )
            item = f"{wanted['image']}, {name}"
            yield Row(item, "input_ids", difference(sample.input_ids[one], torch.tensor(wanted["templates"][name]["input_ids"])), 0, 0)
            yield Row(item, "labels", difference(sample.labels[one], torch.tensor(wanted["templates"][name]["labels"])), 0, 0)
        clip = _received(vision.backbone, lambda: vision(sample.vision_pixels, sample.letterboxes))  # noqa: B023 (called at once)
        yield Row(wanted["image"], "vision pixels", difference(clip[0], torch.from_numpy(expected[f"{index}.clip"])), EXACT, EXACT)
        normal = _received(grounder.image_encoder, lambda: grounder.encode(sample.sam_pixels, sample.letterboxes))  # noqa: B023
        yield Row(wanted["image"], "grounder pixels", difference(normal[0], torch.from_numpy(expected[f"{index}.sam"])), EXACT, EXACT)
        if f"{index}.region_mask_used" in expected:
            grid = torch.from_numpy(expected[f"{index}.region_mask_used"])
            yield Row(wanted["image"], "region grid", difference(sample.region_masks, grid), 0, 0)
        if f"{index}.gt_mask" in expected:
            mask = torch.from_numpy(sample.targets[0].mask_HW)
            yield Row(wanted["image"], "target mask", difference(mask, torch.from_numpy(expected[f"{index}.gt_mask"])), 0, 0)
