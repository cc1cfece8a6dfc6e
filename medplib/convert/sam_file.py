"""`sam-med2d_b.pth` and segment-anything's own .pth files -> a checkpoint folder that holds a grounder and nothing else, and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.nn import functional

from medplib.convert.sizes import sam_sizes
from medplib.errors import InputError
from medplib.lineage import Checkpoint, Lineage, SourceStamp, save_checkpoint, sha256_file
from medplib.models.bridge import GROUNDER, published_name
from medplib.models.build import ModelConfig
from medplib.models.config_grounding import GrounderConfig
from medplib.models.grounding import build_grounder
from medplib.models.sam import Adapter, sam_med2d_keys
from medplib.paths import new_folder
from medplib.tensorfiles import StoredTensor, open_tensors

_BUFFERS = ("pixel_mean", "pixel_std")


def import_sam(
    file: Path,
    out: Path,
    *,
    stage: str = "sam",
    image_size: int | None = None,
    adapter: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Lineage:
    """Write checkpoint folder `out` from a SAM or SAM-Med2D file.

    Args:
        file: .pth (read with weights_only) or .safetensors.
        out: new folder.
        stage: name written into the lineage.
        image_size: another input size than that of the file; positions are interpolated, as SAM-Med2D did to come from 1024 to 256 pixels.
        adapter: add SAM-Med2D's adapters to a file without them, at random (seed 0), to be trained.
        say: told what was changed.

    Raises:
        InputError: no such model in the file, tensors missing, left over or of another shape.
    """
    stored = {name: tensor for name, tensor in open_tensors(file).items() if name not in _BUFFERS}
    names = sam_med2d_keys(stored)
    tensors = {f"grounder.{names[name]}": tensor for name, tensor in stored.items()}
    config = sam_sizes({name: tensor.shape for name, tensor in tensors.items()})
    _check(tensors, config, file)
    if image_size is not None and image_size < 1:
        raise InputError(where="--image_size", expected="pixels", found=str(image_size))
    if image_size is not None and image_size != config.image_size:
        resized = replace(config, image_size=image_size)  # refuses sizes that patches do not divide
        tensors, config = _interpolated(tensors, config, resized.grid), resized
        say(f"positions interpolated to {image_size} pixels")
    if adapter and config.vit.adapter:
        say("the file has adapters; none are added")
    elif adapter:
        config = replace(config, vit=replace(config.vit, adapter=True))
        tensors = _with_adapters(tensors, config)
        say("adapters added at random: train them (grounder.image_encoder.adapter)")
    lineage = Lineage(stage=stage, trained=(), steps=0, sources=(SourceStamp(file.name, sha256_file(file), len(stored)),))
    return save_checkpoint(
        out, tensors=tensors, config={"model": asdict(ModelConfig(language=None, grounder=config))}, save_tokenizer=None, lineage=lineage
    )


def export_sam(checkpoint: Checkpoint, out: Path) -> None:
    """Write a checkpoint that holds a grounder and nothing else as `out`/sam.pth, in the layout of SAM-Med2D's own file.

    Raises:
        InputError: a grounder that is no SAM.
    """
    names = {name: published_name(name, experts=()) for name in checkpoint.keys()}  # noqa: SIM118 (it is no dict)
    if own := [name for name, published in names.items() if not published.startswith(GROUNDER)]:
        raise InputError(where=checkpoint.folder, expected="a SAM grounder or a whole model", found=f"{len(own)} others, such as {own[0]}")
    with new_folder(out) as build:
        state = {names[name].removeprefix(GROUNDER): tensor for name, tensor in checkpoint.tensors().items()}
        torch.save({"model": state}, build / "sam.pth")


def _check(tensors: dict[str, StoredTensor], config: GrounderConfig, file: Path) -> None:
    """Compare names, shapes and types with an empty grounder of the same sizes; every difference is counted and some are named."""
    with torch.device("meta"):
        expected = {f"grounder.{name}": tuple(tensor.shape) for name, tensor in build_grounder(config).state_dict().items()}
    found = {name: tuple(tensor.shape) if tensor.dtype.is_floating_point else tensor.dtype for name, tensor in tensors.items()}
    if wrong := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        shown = [f"{name} {found.get(name, 'missing')}{'' if name in expected else ' left over'}" for name in wrong[:5]]
        raise InputError(
            where=file,
            expected=f"the {len(expected)} tensors of a SAM model of width {config.vit.width}",
            found=f"{len(wrong)} missing, left over or of another shape: {', '.join(shown)}{', ...' if len(wrong) > 5 else ''}",
        )


def _with_adapters(tensors: dict[str, StoredTensor], config: GrounderConfig) -> dict[str, StoredTensor]:
    """The tensors of an encoder without adapters under the names of one with, and the adapters."""
    plain = re.compile(r"^(grounder\.image_encoder\.vit\.blocks\.\d+\.mlp\.)(lin\d\..+)$")
    renamed = {plain.sub(r"\1mlp.\2", name): tensor for name, tensor in tensors.items()}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for block in range(config.vit.depth):
            for name, tensor in Adapter(config.vit.width).state_dict().items():
                renamed[f"grounder.image_encoder.vit.blocks.{block}.mlp.adapter.{name}"] = StoredTensor.of(tensor)
    return renamed


def _interpolated(tensors: dict[str, StoredTensor], config: GrounderConfig, grid: int) -> dict[str, StoredTensor]:
    """Absolute positions and the relative ones of global blocks at another grid; windows stay as they are."""
    vit, changed = "grounder.image_encoder.vit.", dict(tensors)
    absolute = tensors[f"{vit}pos_embed"].read().float().permute(0, 3, 1, 2)
    resized = functional.interpolate(absolute, (grid, grid), mode="bilinear", align_corners=False)
    changed[f"{vit}pos_embed"] = StoredTensor.of(resized.permute(0, 2, 3, 1).contiguous())
    for block in config.vit.global_blocks:
        for axis in "hw":
            name = f"{vit}blocks.{block}.attn.rel_pos_{axis}"
            relative = tensors[name].read().float().T[None]
            resized = functional.interpolate(relative, 2 * grid - 1, mode="linear", align_corners=False)
            changed[name] = StoredTensor.of(resized[0].T.contiguous())
    return changed
