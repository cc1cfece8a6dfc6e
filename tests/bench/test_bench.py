"""The benchmarks at tiny size: that they run and that what they compare is equal, never how long it takes."""

import json

import pytest

from medplib.models.config_grounding import GrounderConfig, VitConfig
from scripts.bench import _write, main
from scripts.bench_bfloat16 import bfloat16_rows
from scripts.bench_data import data_rows
from scripts.bench_features import feature_rows
from scripts.bench_lora import lora_rows
from scripts.bench_masks import mask_rows, second_pass_rows
from scripts.bench_metrics import metric_rows
from scripts.bench_parts import Row
from scripts.bench_ranks import rank_rows
from scripts.bench_stages import asked_model
from scripts.bench_step import peer_step_rows
from scripts.bench_volume import volume_rows


def test_steps_run_beside_their_plans(tmp_path):
    rows = main(["--device", "cpu", "--only", "step3,step4", "--out", str(tmp_path / "bench.json")])
    assert [row.id for row in rows] == ["step3", "step4"]
    assert all(row.details["tflop"] > 0 and row.details["planned_gib"] > 0 and row.ratio > 0 for row in rows)
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["details"]["samples"] == 2


def test_metric_rows_compare_equal_values():
    rows = metric_rows("cpu", pairs=1, side=24, volume_side=16)
    assert [row.id for row in rows] == [
        "i_overlap",
        "i_overlap_bool",
        "i_overlap_monai",
        "i_surface_2d",
        "i_surface_2d_mm",
        "i_surface_3d_mm",
    ]
    assert all(row.ratio > 0 for row in rows)


def test_data_rows_read_what_they_wrote():
    rows = data_rows("cpu", kinds=("256",), images=16)
    assert [row.id for row in rows] == ["h_256"]
    assert rows[0].details["samples_per_second"] > 0


def test_lora_rows_run():
    rows = lora_rows("cpu", tokens=32, experts=(2,), repeats=1)
    assert [row.id for row in rows] == ["a2_lora"]


def test_rows_of_masks_compare_equal_masks():
    model, batch = asked_model("cpu", samples=2)
    assert [row.id for row in second_pass_rows(model, batch, "cpu", repeats=1)] == ["g"]
    assert [row.id for row in mask_rows(model.grounder, batch, "cpu", repeats=1)] == ["n"]


def test_features_that_are_kept_are_equal():
    config = GrounderConfig(image_size=64, vit=VitConfig(width=32, depth=1, heads=2, window_size=2, global_blocks=(0,)))
    assert [row.id for row in feature_rows("cpu", config=config, repeats=1)] == ["c"]


def test_step_beside_peft_has_the_same_loss():
    rows = peer_step_rows("cpu", width=64, layers=1, length=32, samples=1, repeats=1)
    assert [row.id for row in rows] == ["b", "b_peer"]


def test_two_ranks_exchange_gradients():
    assert [row.id for row in rank_rows("cpu", steps=1, batch=1, turns=1)] == ["m", "m_shared"]


def test_rows_that_were_not_run_stay_in_the_file(tmp_path):
    def row(key: str, ratio: float) -> Row:
        return Row(key, "name", ratio, "peer", 1.0, 1.0, 1.0, False, {})

    _write(tmp_path / "b.json", [row("a32", 1.0), row("a8", 2.0)], "cpu")
    _write(tmp_path / "b.json", [row("a8", 3.0), row("h", 4.0)], "cpu")
    stored = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(r["id"], r["ratio"]) for r in stored] == [("a8", 3.0), ("a32", 1.0), ("h", 4.0)]
    assert "| a32 |" in (tmp_path / "b.md").read_text()


def test_slices_in_batches_say_the_same():
    assert [row.id for row in volume_rows("cpu", slices=5, repeats=1)] == ["l"]


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_has_the_same_loss_where_there_is_any(monkeypatch, native):
    monkeypatch.setattr("scripts.bench_bfloat16.multiplies_bfloat16", lambda device: native)
    assert [row.id for row in bfloat16_rows("cpu", samples=1, repeats=1)] == ["o"] * native
