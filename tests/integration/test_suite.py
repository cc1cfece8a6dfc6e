"""A whole evaluation with its controls, report and command line, on the toy model: every block appears, every figure says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import Trained

from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.evaluate import evaluate
from medplib.evaluation.controls import mosaic_pairs, shuffled_questions


@pytest.fixture(scope="module")
def metrics(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("suite")
    grounding = str(trained.data / "grounding.json")
    suite = {
        "grounding": {"in_domain": [grounding]},
        "vqa": [str(trained.data / "vqa_closed.json"), str(trained.data / "caption.json")],
        "region": [str(trained.data / "region.json")],
        "calibrate": [grounding],
        "limit": 12,
        "batch_size": 4,  # several batches, so that two ranks have something to share
        "controls": {
            "mosaics": 3, "shuffled": 4, "mean_mask_train": [grounding], "no_image": 6, "experts": 4,
            "grounding_parent": str(trained.folder("grounding_expert")), "vl_parent": str(trained.folder("vl_expert")),
        },
    }  # fmt: skip
    (out / "suite.yaml").write_text(yaml.safe_dump(suite))
    evaluate(trained.folder("moe"), out / "run", suite=out / "suite.yaml")
    return json.loads((out / "run" / "metrics.json").read_text()), out / "run"


@pytest.mark.parametrize(
    "name",
    [
        "grounding.in_domain.mdice",
        "grounding.in_domain.mnsd",
        "grounding.in_domain.upstream.mdice",
        "grounding.in_domain.absent.false_positive_rate",
        "grounding.absent.false_positive_rate",
        "vqa.closed_accuracy",
        "vqa.region_accuracy",
        "vqa.open.rouge_l",
        "controls.mosaic_overlap",
        "controls.mosaic_dice",
        "controls.shuffled_text_mdice",
        "controls.mean_mask_mdice",
        "controls.no_image_closed_accuracy",
        "controls.force_grounding.mdice",
        "controls.force_vl.closed_accuracy",
        "controls.force_vl.router_gain_closed",
        "controls.force_grounding.router_gain_mdice",
        "controls.force_grounding.false_positive_rate",
        "controls.vl_parent.router_gain_closed",
        "controls.grounding_parent.mdice",
        "controls.vl_parent.closed_accuracy",
        "seconds.moe",
        "seconds.vision0",
    ],
)
def test_every_promised_figure_is_there(metrics: tuple[dict, Path], name: str) -> None:
    node = metrics[0]
    for part in name.split("."):
        node = node[part]
    assert {"value", "n", "ci95", "protocol", "policy", "aggregation"} <= set(node)
    assert node["n"] > 0


def test_two_ranks_find_the_same(metrics: tuple[dict, Path], trained: Trained, tmp_path: Path) -> None:
    alone, out = metrics[1], tmp_path / "run"
    evaluate(trained.folder("moe"), out, suite=alone.parent / "suite.yaml", ranks=2)
    names = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name


def test_report_is_self_contained(metrics: tuple[dict, Path]) -> None:
    page = (metrics[1] / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "http" not in page.replace("http-equiv", "")


def test_controls_choose_what_they_say(trained: Trained) -> None:
    records = read_records(trained.data / "grounding.json")
    for first, second in mosaic_pairs(records, count=5, seed=0):
        assert first.targets[0].name not in second.meta.present
        assert second.targets[0].name not in first.meta.present
    originals = {r.id: r for r in records}
    for record in shuffled_questions(records, seed=0):
        before = originals[record.id.removesuffix("~shuffled")]
        assert record.targets == before.targets
        assert record.turns[0] != before.turns[0]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("text", "words"), [("grounding: [", "YAML"), ("colour: 1", "colour"), ("vqa: [nowhere.json]", "nowhere.json")])
def test_bad_suite_is_one_line(trained: Trained, tmp_path: Path, text: str, words: str, ranks: int) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        evaluate(trained.folder("moe"), tmp_path / "out", suite=tmp_path / "s.yaml", ranks=ranks)


def test_no_ranks_is_one_line(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--ranks: expected at least 1"):
        evaluate(trained.folder("moe"), tmp_path / "out", ranks=0)
