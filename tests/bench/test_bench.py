"""The benchmark of full-size steps at its tiny size: what runs on an accelerator is the same code."""

import json

from scripts.bench import main


def test_steps_run_beside_their_plans(tmp_path):
    rows = main(["--device", "cpu", "--only", "step3,step4", "--out", str(tmp_path / "bench.json")])
    assert [row.id for row in rows] == ["step3", "step4"]
    assert all(row.details["tflop"] > 0 and row.details["planned_gib"] > 0 and row.ratio > 0 for row in rows)
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["details"]["samples"] == 2
