"""Inputs and models of the golden tensors: published weights (random, tiny) in our model, published inputs as our Batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from medplib.convert.sizes import clip_sizes, llama_sizes, moe_sizes, sam_sizes
from medplib.models.bridge import BUFFERS, our_names
from medplib.models.build import ModelConfig, build_model
from medplib.models.medplib import MedPLIB
from medplib.models.projector import ProjectorConfig
from medplib.types import Batch, Letterbox, Record

DATA = Path(__file__).parent / "data"
EXPERTS = ("grounding", "vl")


@dataclass(frozen=True)
class Row:
    """One compared quantity. `difference` is the largest absolute one, relative for losses and gradient norms, 0 or 1 for equality."""

    item: str
    quantity: str
    difference: float
    tolerance: float
    goal: float


READ: dict[Path, set[str]] = {}
"""Names of golden values that were looked at, by file."""


class Golden(dict):
    """The named values of one golden file; remembers in READ which of them were looked at."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._read = READ.setdefault(file, set())

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)


def golden_tensors(file: Path) -> Golden:
    """A golden safetensors file."""
    return Golden(file, load_file(file))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; infinite when the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0


def published_state(folder: str) -> dict[str, torch.Tensor]:
    """All tensors under published names, float16 as stored."""
    sam = load_file(DATA / "sam_med2d" / "state_dict.safetensors")
    return load_file(DATA / folder / "state_dict.safetensors") | {f"model.visual_model.{name}": value for name, value in sam.items()}


def published_config(folder: str, *, top_k: int = 1) -> dict:
    """The fixture's sizes as a published config.json writes them."""
    sizes = json.loads((DATA / folder / "config.json").read_text())
    moe = sizes.get("moe")
    section = {"moe": {"moe_enable": True, "num_experts": [2] * 3, "moe_layers_idx": [0, 1, 2], "top_k_experts": top_k}} if moe else {}
    return {"model_type": "medplib_moe_llama" if moe else "medplib", **sizes["llm"], **section}


def clip_config(folder: str) -> dict:
    """The fixture's CLIP configuration."""
    return json.loads((DATA / folder / "config.json").read_text())["clip_vision"]


def model_config(folder: str, *, top_k: int = 1) -> ModelConfig:
    """Our sizes of the fixture's model."""
    names = our_names(published_state(folder), experts=EXPERTS)
    shapes = {ours: tuple(tensor.shape) for name, tensor in published_state(folder).items() if (ours := names.get(name))}
    config = published_config(folder, top_k=top_k)
    language = llama_sizes(config, shapes, where=folder, moe=moe_sizes(config, where=folder, layers=3, experts=()))
    return ModelConfig(
        vision=clip_sizes(shapes, clip_config(folder), name="fixture"),
        projector=ProjectorConfig(kind="mlp", pool=1),
        language=language,
        grounder=sam_sizes(shapes),
        legacy=True,
    )


@cache
def model(folder: str, top_k: int = 1) -> MedPLIB:
    """Our model with the fixture's weights, in evaluation mode."""
    config = model_config(folder, top_k=top_k)
    built = build_model(config, vocab_size=config.language.vocab_size)
    state, names = published_state(folder), our_names(published_state(folder), experts=EXPERTS)
    built.load_state_dict({names[name]: value.float() for name, value in state.items() if not BUFFERS.search(name)}, strict=True)
    return built.eval()


@dataclass(frozen=True)
class Case:
    """Fixture inputs as a Batch, with the two images as the fixture normalised them."""

    batch: Batch
    images_clip: torch.Tensor
    images_sam: torch.Tensor
    expanded: torch.Tensor  # (B, L) bool, real positions


def case(folder: str) -> Case:
    """The training batch of a fixture: placeholders expanded, right-padded."""
    inputs = load_file(DATA / folder / "inputs.safetensors")
    meta = json.loads((DATA / folder / "inputs_meta.json").read_text())
    image_tokens = 16
    rows = []
    for ids, labels, mask in zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True):
        repeats = torch.where(ids[mask] == -200, image_tokens, 1)
        rows.append((ids[mask].repeat_interleave(repeats), labels[mask].repeat_interleave(repeats)))
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = (pad([row[k] for row in rows], batch_first=True, padding_value=value) for k, value in ((0, 0), (1, -100)))
    real = pad([torch.ones(len(row[0]), dtype=torch.bool) for row in rows], batch_first=True)
    samples = meta["samples"]
    boxes = [Letterbox.fit(tuple(sample["original_hw"]), meta["sam_image_size"]) for sample in samples]
    seg = [(row, int(column) - 1) for row, column in (ids == meta["tokens"]["seg"]).nonzero().tolist()]
    owners = [row for row, sample in enumerate(samples) for _ in sample["gt_masks"]]
    regions = [row for row, sample in enumerate(samples) if sample["region_mask"] is not None]
    size = meta["sam_image_size"]
    batch = Batch(
        input_ids=ids,
        labels=labels,
        attention_mask=real,
        segments=torch.zeros_like(ids),
        positions=torch.arange(ids.shape[1]).expand_as(ids),
        vision_pixels=torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8),
        sam_pixels=torch.zeros(len(rows), 3, size, size, dtype=torch.uint8),
        letterboxes=boxes,
        target_row=torch.tensor([row for row, _ in seg]),
        target_position=torch.tensor([column for _, column in seg]),
        target_image=torch.tensor(owners),
        target_present=torch.ones(len(seg), dtype=torch.bool),
        target_masks=torch.zeros(len(seg), size, size, dtype=torch.uint8),
        original_masks=[inputs[f"gt_mask_{index}"].bool() for sample in samples for index in sample["gt_masks"]],
        name_ids=torch.zeros(len(seg), 1, dtype=torch.int64),
        names=["target"] * len(seg),
        region_masks=torch.cat([inputs[f"region_mask_{index}"] for index in range(len(regions))]).float(),
        region_image=torch.tensor(regions),
        records=[(Record("fixture", (Path("a"),), ()),)] * len(rows),
    )
    return Case(batch, inputs["images_clip"].float(), inputs["images_sam"].float(), real)


def prompt_case(inputs: dict[str, torch.Tensor], meta: dict, *, with_region: bool) -> Case:
    """A prompt of one row; without the region its slot is taken out, as the published evaluation does."""
    ids = inputs["input_ids"][0]
    if not with_region:
        ids = ids[ids != -300]
    ids = ids.repeat_interleave(torch.where(ids == -200, 16, 1))[None]
    size = meta["sam_image_size"]
    regions = inputs["region_mask"].float() if with_region else torch.zeros(0, 4, 4)
    batch = Batch(
        input_ids=ids,
        labels=torch.full_like(ids, -100),
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        segments=torch.zeros_like(ids),
        positions=torch.arange(ids.shape[1])[None],
        vision_pixels=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        sam_pixels=torch.zeros(1, 3, size, size, dtype=torch.uint8),
        letterboxes=[Letterbox.fit(tuple(meta["original_hw"]), size)],
        target_row=torch.zeros(0, dtype=torch.int64),
        target_position=torch.zeros(0, dtype=torch.int64),
        target_image=torch.zeros(1, dtype=torch.int64),
        target_present=torch.zeros(0, dtype=torch.bool),
        target_masks=torch.zeros(0, size, size, dtype=torch.uint8),
        original_masks=[],
        name_ids=torch.zeros(0, 1, dtype=torch.int64),
        names=[],
        region_masks=regions,
        region_image=torch.zeros(len(regions), dtype=torch.int64),
        records=[(Record("fixture", (Path("a"),), ()),)],
    )
    return Case(batch, inputs["images_clip"].float(), inputs["images_sam"].float(), batch.attention_mask)


def with_fixture_pixels(built: MedPLIB, case_: Case) -> None:
    """Make the encoders of `built` read the fixture's normalised images: ours take uint8, of which the fixture keeps none."""
    built.vision.forward = lambda pixels, boxes: built.vision.backbone(case_.images_clip)
    built.grounder.encode = lambda pixels, boxes: built.grounder.image_encoder(case_.images_sam, torch.zeros(len(case_.images_sam), 6))
