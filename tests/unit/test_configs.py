"""Every shipped configuration parses against the real signatures, and the stages of a recipe fit together."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from medplib.config import from_dict
from medplib.data.augment import AugmentConfig
from medplib.data.datamodule import DataModule
from medplib.data.dataset import DrawConfig
from medplib.errors import InputError
from medplib.evaluation.suite import SuiteConfig
from medplib.models.build import build_model
from medplib.training.stage import StageConfig

ROOT = Path(__file__).parents[2] / "configs"
STAGES = sorted(f for f in ROOT.rglob("stage*.yaml"))
SUITES = sorted((ROOT / "eval").glob("*.yaml"))


def _read(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", STAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_stage_config_parses(file: Path) -> None:
    data = _read(file)
    assert set(data) <= {"model", "data", "trainer"}
    stage = from_dict(StageConfig, data["model"]["stage"], where=str(file))
    assert stage.output.startswith("checkpoints/")
    assert set(data["data"]) <= set(inspect.signature(DataModule.__init__).parameters)
    from_dict(DrawConfig, data["data"].get("draw", {}), where=str(file))
    from_dict(AugmentConfig, data["data"].get("augment", {}), where=str(file))
    if stage.model is not None and "vision" not in stage.init.parts:  # whose sizes come with the part
        with torch.device("meta"):
            assert build_model(stage.model, vocab_size=768) is not None


@pytest.mark.parametrize("folder", sorted({f.parent for f in STAGES}), ids=lambda f: f.name)
def test_parents_are_stages_of_the_same_recipe(folder: Path) -> None:
    stages = [from_dict(StageConfig, _read(f)["model"]["stage"], where=str(f)) for f in sorted(folder.glob("stage*.yaml"))]
    written = {stage.output: stage.name for stage in stages}
    written |= {found["output"]: found["stage"] for found in map(_read, (ROOT / "imports").glob("*.yaml"))}
    for stage in stages:
        init = stage.init
        parents = [p for p in (init.base, init.token_rows) if p] + list(init.parts.values()) + list(init.experts.values())
        for parent in parents:
            assert written[parent.path] == parent.stage


@pytest.mark.parametrize("file", SUITES, ids=lambda f: f.name)
def test_suite_parses(file: Path) -> None:
    from_dict(SuiteConfig, _read(file), where=str(file))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "a", "output": "b"}, "either init.base or model"),
        ({"name": "a", "output": "b", "init": {"base": {"path": "x", "stage": "y"}}}, "something to train"),
        ({"name": "a", "output": "b", "init": {"base": {"path": "x"}}, "train": ["projector"]}, "'stage'"),
        ({"name": "a", "output": "b", "objektive": "x"}, "objektive"),
        ({"name": "a", "output": "b", "init": {"base": {"path": "x", "stage": "y", "part": "grounder"}}, "train": ["projector"]}, "part"),
        (
            {
                "name": "a",
                "output": "b",
                "train": ["projector"],
                "model": {},
                "tokenizer": "t",
                "init": {"parts": {"vision": {"path": "x", "stage": "y", "part": "names"}}},
            },
            "part: names elsewhere",
        ),
    ],
)
def test_contradictions_are_named(data: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_dict(StageConfig, data, where="stage.yaml")
