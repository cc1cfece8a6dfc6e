"""Shared fixtures: a toy data set, and all stages trained on it once per session at a size of seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings
from toy import NAMES, write_toy

import medplib  # noqa: F401  (before anything that imports torchvision)

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)  # the same examples every time; HYPOTHESIS_PROFILE=default looks for others
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_SIZES = {
    "vision": {"kind": "timm", "name": "resnet10t", "image_size": 64, "grid": 8, "levels": [1, 2], "width": 24},
    "projector": {"kind": "mlp", "pool": 2},
    "language": {"hidden_size": 32, "layers": 2, "heads": 2, "mlp_size": 64},
    "max_length": 256,
}
_GROUNDER = {
    "kind": "conv",
    "image_size": 64,
    "embed_dim": 32,
    "normalisation": "image",
    "conv": {"stem_stride": 4, "widths": [8, 16, 16, 32]},
    "decoder": {
        "depth": 1,
        "heads": 2,
        "mlp_dim": 32,
        "multimask_outputs": 0,
        "high_resolution": True,
        "subpixel": True,
        "presence_head": True,
        "presence_detached": False,
        "upscaled_width": 8,
        "residual": True,
    },
}


@dataclass(frozen=True)
class Trained:
    """Where the toy data, the configs and the checkpoints of the session lie."""

    data: Path
    configs: Path
    checkpoints: Path

    def folder(self, stage: str) -> Path:
        return self.checkpoints / stage


def _stage(name: str, out: Path, *, steps: int, train_files: list[Path], val: Path, **stage) -> dict:
    return {
        "model": {"stage": {"name": name, "output": str(out), **stage}},
        "data": {"train": [str(f) for f in train_files], "val": [str(val)], "batch_size": 4, "val_limit": 4},
        "trainer": {
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(out.parent), "name": "logs"},
            },
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "check_val_every_n_epoch": None,
            "val_check_interval": steps,
        },
    }


def stage_configs(data: dict[str, Path], tokenizer: Path, out: Path) -> dict[str, dict]:
    """The six stages at toy size, in order."""
    names = ("dense0", "vision0", "grounder0", "align", "vl_expert", "grounding_expert")
    parent = {name: {"path": str(out / name), "stage": name} for name in names}
    no_masks = {"mask_bce": 0, "mask_dice": 0}
    everything = [data[k] for k in ("caption", "vqa_closed", "region", "grounding")]
    scratch = {"tokenizer": str(tokenizer)}
    return {
        "dense0": _stage(
            "dense0", out / "dense0", steps=4, train_files=[data["grounding"]], val=data["grounding"], objective="dense",
            model={**_SIZES, "grounder": _GROUNDER, "name_prompts": True, "seg_projector_norm": True}, **scratch,
            init={"fresh": ["vision", "projector", "region", "language", "grounder", "names", "seg_projector"]},
            train=["grounder.image_encoder", "grounder.mask_decoder", "grounder.presence", "names"], losses={"lm": 0, "presence": 0.3},
            optim={"muon": ["grounder.image_encoder"]},
        ),
        "vision0": _stage(
            "vision0", out / "vision0", steps=4, train_files=[data["caption"], data["grounding"]], val=data["grounding"],
            objective="contrastive", **scratch,
            model={
                **_SIZES,
                "vision": {"kind": "grounder", "image_size": 64, "grid": 8, "width": 24, "names": list(NAMES)},
                "contrast_width": 24,
            },
            init={
                "parts": {"vision": {**parent["dense0"], "part": "grounder"}},
                "fresh": ["vision.fuse", "projector", "region", "language", "words", "contrast"],
            },
            train=["vision.fuse", "language", "words", "contrast"], losses={"contrastive": 1.0, **no_masks},
        ),
        "grounder0": _stage(
            "grounder0", out / "grounder0", steps=6, train_files=[data["grounding"]], val=data["grounding"], objective="promptable",
            init={"base": parent["dense0"]}, train=["grounder", "names"], losses={"lm": 0, "presence": 0.3, "mask_iou": 0.3},
        ),
        "align": _stage(
            "align", out / "align", steps=2, train_files=[data["caption"]], val=data["caption"], init={"base": parent["vision0"]},
            train=["projector"], losses=no_masks,
        ),
        "vl_expert": _stage(
            "vl_expert", out / "vl_expert", steps=4, train_files=everything[:3], val=data["vqa_closed"], init={"base": parent["align"]},
            train=["projector", "region", "language.embeddings", "language.head", "language.norms"], losses=no_masks,
            lora={"r": 4, "alpha": 8, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
            optim={"lr": 0.01},
        ),
        "grounding_expert": _stage(
            "grounding_expert", out / "grounding_expert", steps=4, train_files=[data["grounding"]], val=data["grounding"],
            init={
                "base": parent["vl_expert"], "parts": {"grounder": parent["grounder0"], "names": parent["grounder0"]},
                "fresh": ["seg_projector"],
            },
            train=["grounder.mask_decoder", "grounder.presence", "seg_projector"], train_token_rows=True,
            lora={"r": 4, "alpha": 8, "targets": ["gate_proj", "up_proj", "down_proj"]},
            losses={"decision": 0.5, "presence": 0.3, "distill": 1.0}, optim={"lr": 0.01},
        ),
        "moe": _stage(
            "moe", out / "moe", steps=4, train_files=everything, val=data["grounding"],
            moe={"experts": ["grounding", "vl"], "tasks": {"grounding": "grounding", "region": "vl"}},
            init={
                "base": parent["vl_expert"],
                "parts": dict.fromkeys(("grounder", "names", "seg_projector"), parent["grounding_expert"]),
                "experts": {"grounding": parent["grounding_expert"], "vl": parent["vl_expert"]},
                "token_rows": parent["grounding_expert"],
                "fresh": ["router"],
            },
            train=["router", "language.head", "language.embeddings", "region", "seg_projector", "grounder.mask_decoder"],
            lora={"r": 4, "alpha": 8, "targets": ["gate_proj", "up_proj", "down_proj", "q_proj", "v_proj"]},
            losses={"decision": 0.5, "presence": 0.3, "router": 0.01, "router_task": 0.1, "router_z": 0.001}, optim={"lr": 0.01},
        ),
    }  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every stage, trained through the command's own entry point."""
    from medplib.data.sources import read_records
    from medplib.fit import main
    from medplib.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("toy")
    files = write_toy(root / "data")
    texts = [" " + t.text for f in files.values() for r in read_records(f) for t in r.turns]
    train_tokenizer(texts, 340).save_pretrained(root / "tokenizer")
    (root / "configs").mkdir()
    for name, config in stage_configs(files, root / "tokenizer", root / "checkpoints").items():
        path = root / "configs" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        main(["--config", str(path)])
    return Trained(root / "data", root / "configs", root / "checkpoints")
