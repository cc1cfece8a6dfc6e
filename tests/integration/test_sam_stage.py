"""SAM-Med2D's own training as stage 0, and its adapters trained on in stage III, through the real command at fixture size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Trained
from safetensors.torch import load_file

from medplib.convert.sam_file import import_sam
from medplib.fit import main
from medplib.lineage import load_checkpoint
from tests.parity.fixtures import DATA


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> Path:
    """A SAM file without adapters, as segment-anything publishes them, imported with adapters added."""
    root = tmp_path_factory.mktemp("sam")
    plain = {name: tensor for name, tensor in load_file(DATA / "sam_med2d" / "state_dict.safetensors").items() if ".Adapter." not in name}
    torch.save(plain, root / "sam.pth")
    told: list[str] = []
    import_sam(root / "sam.pth", root / "sam", image_size=64, adapter=True, say=told.append)
    assert len(told) == 2
    return root / "sam"


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that differ, up to their block number."""
    return {name for name in after if name in before and not torch.equal(before[name].float(), after[name].float())}


def test_points_and_boxes_teach_adapters_decoder_and_quality(trained: Trained, sam: Path, tmp_path: Path) -> None:
    shipped = yaml.safe_load((Path(__file__).parents[2] / "configs/stages/stage0_sam_med2d.yaml").read_text())
    stage = shipped["model"]["stage"]
    stage |= {"output": str(tmp_path / "stage0"), "tokenizer": str(trained.checkpoints.parent / "tokenizer")}
    stage["init"]["parts"]["grounder"] = {"path": str(sam), "stage": "sam"}
    stage["frozen_dtype"] = "float32"
    data = {"train": [str(trained.data / "grounding.json")], "val": [str(trained.data / "grounding.json")], "batch_size": 4, "val_limit": 4}
    trainer = {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "logger": False, "val_check_interval": 3,
               "check_val_every_n_epoch": None}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"stage": stage}, "data": data, "trainer": trainer}))
    main(["--config", str(tmp_path / "c.yaml")])
    written = load_checkpoint(tmp_path / "stage0", stage="sam_med2d")
    moved = changed(load_checkpoint(sam).tensors(), written.tensors())
    assert any(".mlp.adapter." in name for name in moved)
    assert any("iou_prediction_head" in name for name in moved)
    assert not any("image_encoder" in name and ".adapter." not in name for name in moved)
    assert written.lineage.metrics["mask_iou"] >= 0
    assert json.loads((tmp_path / "stage0/config.json").read_text())["model"]["language"] is None


def test_adapters_train_on_in_the_grounding_stage(trained: Trained, sam: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((trained.configs / "grounding_expert.yaml").read_text())
    stage = config["model"]["stage"]
    stage |= {"output": str(tmp_path / "stage3"), "train": ["grounder.image_encoder.adapter", "grounder.mask_decoder", "seg_projector"]}
    stage["init"]["parts"] = {"grounder": {"path": str(sam), "stage": "sam"}}
    stage["losses"] = {"mask_iou": 1.0, "mask_focal": 1.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    main(["--config", str(tmp_path / "c.yaml")])
    written = load_checkpoint(tmp_path / "stage3")
    moved = changed(load_checkpoint(sam).tensors(), written.tensors())
    assert any(".mlp.adapter." in name for name in moved)
    assert any("iou_prediction_head" in name for name in moved)
    assert "grounder.image_encoder.adapter" in written.lineage.trained
