"""Stages with frozen weights in bfloat16 and recomputed layers: trained weights move as before, frozen ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Trained

from medplib.errors import InputError
from medplib.fit import main
from medplib.lineage import load_checkpoint
from medplib.training.parts import part_of


def fit(trained: Trained, stage: str, out: Path, *more: str) -> dict[str, torch.Tensor]:
    main(["--config", str(trained.configs / f"{stage}.yaml"), "--model.stage.output", str(out), *more])
    return load_checkpoint(out).tensors()


@pytest.mark.parametrize("stage", ["grounding_expert", "moe"])
def test_recomputed_layers_change_nothing(trained: Trained, tmp_path: Path, stage: str) -> None:
    before = load_checkpoint(trained.folder(stage)).tensors()
    after = fit(trained, stage, tmp_path / "out", "--model.stage.checkpointing", "true")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_frozen_weights_in_half_the_bytes(trained: Trained, tmp_path: Path) -> None:
    mixed = ("--trainer.precision", "bf16-mixed", "--model.stage.checkpointing", "true")
    half = fit(trained, "moe", tmp_path / "half", *mixed, "--model.stage.frozen_dtype", "bfloat16")
    full = fit(trained, "moe", tmp_path / "full", *mixed)
    types = {part: {t.dtype for name, t in half.items() if part_of(name) == part} for part in ("language.norms", "router", "language.head")}
    assert types == {"language.norms": {torch.bfloat16}, "router": {torch.float32}, "language.head": {torch.float32}}
    head = "language.model.lm_head.weight"
    start = load_checkpoint(trained.folder("vl_expert")).tensors()[head]
    moves = torch.stack([(half[head] - start).flatten(), (full[head] - start).flatten()])
    assert torch.corrcoef(moves)[0, 1] > 0.8


def test_frozen_halves_need_autocast(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bf16-mixed"):
        fit(trained, "moe", tmp_path / "out", "--model.stage.frozen_dtype", "bfloat16")
    assert not (tmp_path / "out").exists()
