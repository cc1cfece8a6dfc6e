"""Features of a frozen image encoder on disk: encoded once, the same training; nothing of another encoder; room and damage are said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Trained

from medplib.errors import InputError
from medplib.fit import main
from medplib.lineage import load_checkpoint


def fit(trained: Trained, stage: str, out: Path, *more: str) -> dict[str, torch.Tensor]:
    main(["--config", str(trained.configs / f"{stage}.yaml"), "--model.stage.output", str(out), *more])
    return load_checkpoint(out).tensors()


@pytest.fixture
def cache(tmp_path: Path) -> tuple[str, str]:
    return ("--model.stage.feature_cache", str(tmp_path / "features"))


def test_a_second_run_encodes_nothing_and_learns_the_same(trained: Trained, tmp_path: Path, cache, caplog) -> None:
    caplog.set_level("INFO")
    runs = []
    for name, encoded in (("first", True), ("second", False)):
        caplog.clear()
        runs.append(fit(trained, "grounding_expert", tmp_path / name, *cache))
        assert (" 0 encoded" in caplog.text) != encoded
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    plain, cached = (load_checkpoint(folder).lineage.metrics for folder in (trained.folder("grounding_expert"), tmp_path / "first"))
    assert cached == pytest.approx(plain, abs=2e-3)  # images encoded in other company: equal but for rounding
    kept = list((tmp_path / "features").rglob("*.safetensors"))
    assert len(kept) > 3
    assert len({path.parent.parent for path in kept}) == 1


def test_damage_and_lack_of_room_are_said_and_end_nothing(trained: Trained, tmp_path: Path, cache, caplog) -> None:
    caplog.set_level("INFO")
    first = fit(trained, "grounding_expert", tmp_path / "first", *cache)
    kept = sorted((tmp_path / "features").rglob("*.safetensors"))
    kept[0].write_bytes(kept[0].read_bytes()[:40])
    caplog.clear()
    second = fit(trained, "grounding_expert", tmp_path / "second", *cache)
    assert f"{kept[0]} is damaged" in caplog.text
    caplog.clear()
    third = fit(trained, "grounding_expert", tmp_path / "third", "--model.stage.feature_cache", str(tmp_path / "small"),
                "--model.stage.feature_cache_gb", "0.00001")  # fmt: skip
    assert caplog.text.count("is full") == 1
    assert first.keys() == second.keys() == third.keys()


def test_an_encoder_that_trains_is_refused(trained: Trained, tmp_path: Path, cache) -> None:
    with pytest.raises(InputError, match="frozen image encoder"):
        fit(trained, "grounding_expert", tmp_path / "out", *cache, "--model.stage.train", "[grounder, seg_projector]")
    assert not (tmp_path / "out").exists()
