"""An imported published folder answers, evaluates and trains on like any other checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Trained
from PIL import Image

from medplib.convert.published import ImportOptions, import_published
from medplib.data.sources import read_records
from medplib.evaluation.runner import RunOptions, evaluate_records
from medplib.fit import main
from medplib.inference.predictor import Predictor
from medplib.lineage import load_checkpoint
from medplib.predict import predict
from tests.unit.convert.published_folder import write_published


@pytest.fixture(scope="module", params=[False, True], ids=["right", "legacy"])
def imported(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imported")
    folder = write_published(root / "published", "llm_moe")
    import_published(folder, root / "ours", ImportOptions(stage="moe", clip=str(folder / "clip.json"), legacy=request.param))
    return root / "ours"


def test_it_answers_about_a_picture(imported: Path, tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 97, 3), np.uint8)).save(tmp_path / "a.png")
    predict(imported, tmp_path / "a.png", "where is it?", tmp_path / "out", box=[(10, 10, 40, 40)], threshold=0.1)
    answer = json.loads((tmp_path / "out/answer.json").read_text())
    assert all(mask["threshold"] == 0.1 for mask in answer["masks"])
    assert (tmp_path / "out/overlay.png").exists()


def test_it_is_evaluated(imported: Path, trained: Trained):
    predictor = Predictor(imported, max_new_tokens=6)
    records = read_records(trained.data / "grounding.json")[:4] + read_records(trained.data / "region.json")[:2]
    results = evaluate_records(predictor, records, RunOptions(batch_size=3, progress=""))
    assert len(results.answers) == 6
    assert {score.protocol for score in results.grounding} >= {"upstream", "strict"}


def test_it_trains_on(imported: Path, trained: Trained, tmp_path: Path):
    stage = {
        "name": "more", "output": str(tmp_path / "more"), "init": {"base": {"path": str(imported), "stage": "moe"}},
        "train": ["router", "grounder.mask_decoder", "seg_projector"], "lora": {"r": 2, "alpha": 4, "targets": ["up_proj"]},
        "losses": {"mask_focal": 1.0, "mask_iou": 0.5},
    }  # fmt: skip
    data = {"train": [str(trained.data / "grounding.json"), str(trained.data / "region.json")], "batch_size": 2}
    trainer = {"max_steps": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"stage": stage}, "data": data, "trainer": trainer}))
    main(["--config", str(tmp_path / "c.yaml")])
    written = load_checkpoint(tmp_path / "more")
    assert written.config["model"]["legacy"] == load_checkpoint(imported).config["model"]["legacy"]
    assert "base" in written.lineage.parents
