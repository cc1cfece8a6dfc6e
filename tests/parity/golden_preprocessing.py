"""Published preprocessing of real images beside this project's: pixels, region grids, token ids and labels.

The images stay where they are: a folder is passed in, and nothing of it is part of the project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from medplib.convert.template import EVALUATION, TRAINING
from medplib.convert.tokenizer import published_tokenizer
from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import SampleEncoder
from medplib.data.sources.mecovqa import read_mecovqa
from medplib.models.grounding import PixelNormaliser, valid_mask
from medplib.models.vision import CLIP_MEAN, CLIP_STD
from medplib.tokens import IMAGE_PLACEHOLDER
from medplib.types import InputSpec
from tests.parity.fixtures import Row, difference

TEMPLATES = {"llava_v1": TRAINING, "v1": EVALUATION}
EXACT = 1e-5  # a grey level is 0.015 at least


def preprocessing_rows(folder: Path) -> Iterator[Row]:
    """Rows for every image and conversation of the fixture folder."""
    tokenizer = published_tokenizer(folder / "tokenizer")
    text = json.loads((folder / "expected_text.json").read_text())
    expected = np.load(folder / "expected_tensors.npz")
    ids = text["tokenizer"]["ids"]
    yield Row("tokenizer", "ids of added tokens", float(any(tokenizer.convert_tokens_to_ids(t) != i for t, i in ids.items())), 0, 0)
    records = read_mecovqa(folder / "conversations.json", folder)
    cache = FileCache(64)
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
        clip = (sample.vision_pixels[0] / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
        yield Row(wanted["image"], "vision pixels", difference(clip, torch.from_numpy(expected[f"{index}.clip"])), EXACT, EXACT)
        normal, _ = PixelNormaliser(per_image=False)(sample.sam_pixels, valid_mask(sample.letterboxes))
        yield Row(wanted["image"], "grounder pixels", difference(normal[0], torch.from_numpy(expected[f"{index}.sam"])), EXACT, EXACT)
        if f"{index}.region_mask_used" in expected:
            grid = torch.from_numpy(expected[f"{index}.region_mask_used"])
            yield Row(wanted["image"], "region grid", difference(sample.region_masks, grid), 0, 0)
        if f"{index}.gt_mask" in expected:
            mask = torch.from_numpy(sample.targets[0].mask_HW)
            yield Row(wanted["image"], "target mask", difference(mask, torch.from_numpy(expected[f"{index}.gt_mask"])), 0, 0)
