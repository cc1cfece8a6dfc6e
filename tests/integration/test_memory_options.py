"""Stages with frozen weights in bfloat16 and recomputed layers: trained weights move as before, frozen ones do not."""

from __future__ import annotations

import shutil
from csv import DictReader
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Trained

from medplib.config import from_dict
from medplib.errors import InputError
from medplib.fit import main
from medplib.lineage import ancestry, load_checkpoint
from medplib.training.assemble import assemble
from medplib.training.module import StageModule
from medplib.training.parts import part_of
from medplib.training.stage import StageConfig


def fit(trained: Trained, stage: str, out: Path, *more: str) -> dict[str, torch.Tensor]:
    main(["--config", str(trained.configs / f"{stage}.yaml"), "--model.stage.output", str(out), *more])
    return load_checkpoint(out).tensors()


@pytest.mark.parametrize(("stage", "layers"), [("grounding_expert", "true"), ("moe", "true"), ("moe", "1")])
def test_recomputed_layers_change_nothing(trained: Trained, tmp_path: Path, stage: str, layers: str) -> None:
    before = load_checkpoint(trained.folder(stage)).tensors()
    after = fit(trained, stage, tmp_path / "out", "--model.stage.checkpointing", layers)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("layers", "recomputed"), [(True, [True, True]), (1, [True, False]), (2, [True, True])])
def test_so_many_layers_are_recomputed(trained: Trained, layers: bool | int, recomputed: list[bool]) -> None:
    module = StageModule(from_dict(StageConfig, _stage(trained, "align") | {"checkpointing": layers}, where="align"))
    assert [layer.gradient_checkpointing for layer in module.model.language.decoder.layers] == recomputed


@pytest.mark.parametrize(("layers", "expected"), [("3", "at most the 2 layers"), ("-1", "a number of layers")])
def test_numbers_of_layers_that_cannot_be(trained: Trained, tmp_path: Path, layers: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit(trained, "moe", tmp_path / "out", "--model.stage.checkpointing", layers)
    assert not (tmp_path / "out").exists()


def test_norms_attention_and_mlps_of_every_expert_are_compiled(trained: Trained) -> None:
    module = StageModule(from_dict(StageConfig, _stage(trained, "vl_expert") | {"compile": True}, where="vl_expert"))
    compiled = {type(part).__name__ for part in module.model.language.modules() if part._compiled_call_impl is not None}
    assert compiled == {"LlamaRMSNorm", "LlamaAttention", "LlamaMLP"}


def test_a_decoder_of_other_parts_is_not_compiled_silently(trained: Trained) -> None:
    module = StageModule(from_dict(StageConfig, _stage(trained, "vl_expert"), where="vl_expert"))
    module.model.language.decoder.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    module.model.language.decoder.norm = torch.nn.Identity()
    with pytest.raises(InputError, match=r"stage\.compile.*RMSNorm.*found Linear"):
        module.model.language.compile_layers()


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


def test_layers_are_recomputed_where_the_language_model_is_frozen(trained: Trained) -> None:
    module = StageModule(from_dict(StageConfig, _stage(trained, "align") | {"checkpointing": True}, where="align")).train()
    module.on_train_epoch_start()
    layers = module.model.language.decoder.layers
    assert all(layer.training for layer in layers)
    assert not any(child.training for layer in layers for child in layer.children())


def test_fresh_parts_start_at_random(trained: Trained) -> None:
    raw = _stage(trained, "align")
    raw |= {"init": {**raw["init"], "fresh": ["projector"]}, "seed": 7}
    fresh = assemble(from_dict(StageConfig, raw, where="align")).model.state_dict()
    base = load_checkpoint(trained.folder("vision0")).tensors()
    assert not torch.equal(base["projector.layers.0.weight"], fresh["projector.layers.0.weight"])
    assert torch.equal(base["region.adapter.weight"], fresh["region.adapter.weight"])


def test_a_bad_record_in_a_loader_process_is_one_line(trained: Trained, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained.data, tmp_path / "data"))
    for mask in (copied / "masks").iterdir():
        mask.write_bytes(b"no picture")
    with pytest.raises(InputError) as told:
        fit(trained, "moe", tmp_path / "out", "--data.train", f"[{copied}/grounding.json]", "--data.workers", "1")
    assert str(told.value).startswith(str(copied))
    assert len(str(told.value).splitlines()) == 1


def _stage(trained: Trained, name: str) -> dict:
    return yaml.safe_load((trained.configs / f"{name}.yaml").read_text())["model"]["stage"]


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
@pytest.mark.parametrize("stage", ["grounder0", "moe"])
def test_bfloat16_where_the_processor_multiplies_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, stage: str, native: bool, precision: str
) -> None:
    """Said in a line; float32 gives the very weights of a run that did not ask, bfloat16 losses near its own."""
    monkeypatch.setattr("medplib.models.precision.multiplies_bfloat16", lambda device: native)
    caplog.set_level("INFO")
    after = fit(trained, stage, tmp_path / "out", "--native_bfloat16", "true")
    assert f"trainer.precision {precision}: this processor multiplies {'bfloat16' if native else 'no bfloat16'}" in caplog.text
    before = load_checkpoint(trained.folder(stage))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.tensors().items()) is not native
    assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float32}
    lineage = load_checkpoint(tmp_path / "out").lineage
    found = lineage.metrics
    assert (lineage.precision, lineage.ranks) == (precision, 1)
    assert f"steps {lineage.steps} in {precision} weights" in ancestry(lineage)[0]
    for name in ("mask_bce", "mask_dice", "presence"):
        assert found[name] == pytest.approx(before.lineage.metrics[name], rel=0.05), name


def test_bfloat16_is_asked_for_in_one_way(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.precision: expected none beside native_bfloat16, found 32-true"):
        fit(trained, "align", tmp_path / "out", "--native_bfloat16", "true", "--trainer.precision", "32-true")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("every", "steps"), [("1", [0, 1, 2, 3]), ("2", [1, 3]), ("0", [])])
def test_terms_are_logged_in_the_steps_that_are(trained: Trained, tmp_path: Path, every: str, steps: list[int]) -> None:
    csv = (
        "lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.init_args.save_dir",
        str(tmp_path),
        "--trainer.logger.init_args.name",
        "logs",
    )
    fit(trained, "align", tmp_path / "out", "--trainer.max_steps", "4", "--trainer.log_every_n_steps", every, "--trainer.logger", *csv)
    file = tmp_path / "logs/version_0/metrics.csv"
    rows = list(DictReader(file.open())) if file.exists() else []
    assert [int(row["step"]) for row in rows if row.get("train/loss")] == steps
