from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import write_metrics
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.lines import read_lines, write_lines
from medplib.evaluation.protocols import STRICT, UPSTREAM
from medplib.evaluation.segmentation import GroundingScore

FAST = Bootstrap(resamples=200)


def score(number: int, **changes) -> GroundingScore:
    base = GroundingScore(
        protocol="strict",
        id=f"case{number}",
        record=f"record{number}",
        source="s",
        patient=f"p{number}",
        modality="CT",
        name="liver",
        index=0,
        status="present",
        segmented=True,
        fallback=False,
        intersection=5,
        union=10,
        pred_pixels=7,
        target_pixels=8,
        image_pixels=100,
        iou=0.5,
        dice=2 / 3,
        presence=None,
        quality=None,
    )
    return replace(base, **changes)


def absent(number: int, **changes) -> GroundingScore:
    nothing = {"intersection": 0, "union": 0, "pred_pixels": 0, "target_pixels": 0, "iou": 0.0, "dice": 0.0}
    return score(number, **({"status": "absent", "segmented": False} | nothing | changes))


def test_means_groups_and_macro_by_hand():
    scores = [
        score(0, dice=0.9, iou=0.8),
        score(1, dice=0.7, iou=0.6),
        score(2, dice=0.8, iou=0.7, name="Left Kidney"),
        score(3, dice=0.2, iou=0.1, modality="MR", source="t", target_pixels=3),
    ]
    summary = summarise_grounding(scores, STRICT, FAST)
    assert (summary.mdice.value, summary.mdice.n) == (pytest.approx(0.65), 4)
    assert summary.miou.value == pytest.approx(0.55)
    assert (summary.macro_mdice.value, summary.macro_mdice.n) == (pytest.approx((0.8 + 0.2) / 2), 2)
    assert summary.macro_miou.value == pytest.approx((0.7 + 0.1) / 2)
    assert summary.macro_name_mdice.value == pytest.approx(((0.9 + 0.7 + 0.2) / 3 + 0.8) / 2)
    assert summary.macro_source_mdice.value == pytest.approx((0.8 + 0.2) / 2)
    assert summary.ciou.value == pytest.approx(0.5)
    assert {k: v.mdice.n for k, v in summary.by_modality.items()} == {"ct": 3, "mr": 1}
    assert {k: v.mdice.n for k, v in summary.by_source.items()} == {"s": 3, "t": 1}
    assert {k: v.mdice.n for k, v in summary.by_name.items()} == {"left_kidney": 1, "liver": 3}
    assert {k: v.mdice.n for k, v in summary.by_size.items()} == {"1_to_5_percent": 1, "from_5_percent": 3}
    assert summary.mdice.ci95[0] < 0.65 < summary.mdice.ci95[1]
    assert "threshold" in summary.mdice.policy or "0.5" in summary.mdice.policy
    assert summary.by_modality["mr"].mdice.ci95 is None
    assert summary.absent is None


@pytest.mark.parametrize(
    ("pixels", "name"), [(9, "below_1_percent"), (10, "1_to_5_percent"), (49, "1_to_5_percent"), (50, "from_5_percent")]
)
def test_size_bins(pixels, name):
    summary = summarise_grounding([score(0, target_pixels=pixels, image_pixels=1000)], STRICT, FAST)
    assert list(summary.by_size) == [name]


def test_absent_block_by_hand():
    scores = [
        score(0),
        score(1),
        score(2, segmented=False, pred_pixels=0, dice=0.0, iou=0.0),  # a wrong refusal
        absent(3),
        absent(4),
        absent(5, segmented=True, pred_pixels=20, union=20),
        absent(6, segmented=True, image_pixels=100),  # claimed in words, empty mask
    ]
    block = summarise_grounding(scores, STRICT, FAST).absent
    values = {name: figure.value for name, figure in vars(block).items() if figure is not None}
    assert values == pytest.approx(
        {
            "false_positive_rate": 2 / 4,
            "false_mask_rate": 1 / 4,
            "false_positive_area": 0.2 / 4,
            "refusal_recall": 2 / 4,
            "refusal_precision": 2 / 3,
            "present_recall": 2 / 3,
            "balanced_accuracy": (2 / 3 + 2 / 4) / 2,
        }
    )
    assert block.presence_auroc is None
    assert (block.false_positive_rate.n, block.present_recall.n, block.refusal_precision.n) == (4, 3, 3)


def test_absent_only_and_nothing_refused():
    block = summarise_grounding([absent(0, segmented=True), absent(1, segmented=True)], STRICT, FAST)
    assert block.mdice is None
    assert block.absent.false_positive_rate.value == 1.0
    assert "Clopper" in block.absent.false_positive_rate.interval
    assert block.absent.refusal_precision is None
    assert block.absent.present_recall is None
    assert block.absent.balanced_accuracy is None


def test_presence_auroc_leaves_out_and_says_who_has_no_score(caplog):
    scores = [score(0, presence=0.9), score(1, presence=0.4), absent(2, presence=0.4), absent(3, presence=0.1), absent(4)]
    with caplog.at_level(logging.WARNING):
        figure = summarise_grounding(scores, STRICT, FAST).absent.presence_auroc
    assert (figure.value, figure.n) == (3.5 / 4, 4)
    assert "1 of 5 cases" in caplog.text


def test_counts_are_complete_and_logged(caplog):
    scores = [
        score(0),
        score(1, segmented=False, patient=""),
        score(2, segmented=False, fallback=True),
        score(3, status="not_first"),
        absent(4, status="absent_left_out"),
        absent(5, patient="p0"),
    ]
    with caplog.at_level(logging.INFO):
        counts = summarise_grounding(scores, STRICT, FAST).counts
    assert vars(counts) == {
        "total": 6,
        "present": 3,
        "absent": 1,
        "not_first": 1,
        "absent_left_out": 1,
        "missing_seg": 2,
        "fallback": 1,
        "in_mm": 0,
        "clusters": 3,
        "unknown_patient": 1,
    }
    assert "missing_seg=2" in caplog.text


def test_what_is_left_out_does_not_enter_any_figure():
    kept = [score(0, dice=0.9), score(1, dice=0.5)]
    left_out = [score(2, status="not_first", dice=0.0), absent(3, status="absent_left_out")]
    with_both, alone = summarise_grounding(kept + left_out, STRICT, FAST), summarise_grounding(kept, STRICT, FAST)
    assert with_both.figures("g") == alone.figures("g")


def test_order_of_cases_does_not_change_values():
    rng = np.random.default_rng(0)
    scores = [score(i, dice=float(d), modality="CT" if i % 3 else "MR") for i, d in enumerate(rng.random(30))]
    forward, backward = summarise_grounding(scores, STRICT, FAST), summarise_grounding(scores[::-1], STRICT, FAST)
    for ours, theirs in zip(forward.figures(""), backward.figures(""), strict=True):
        assert (ours.name, ours.figure.value) == (theirs.name, pytest.approx(theirs.figure.value))


def test_figures_survive_the_score_file_and_reach_metrics_json(tmp_path):
    scores = [score(i, modality="X-ray v1.2", dice=i / 4) for i in range(4)] + [absent(9)]
    write_lines(tmp_path / "scores.jsonl", scores)
    again = summarise_grounding(read_lines(tmp_path / "scores.jsonl", GroundingScore), STRICT, FAST)
    first = summarise_grounding(scores, STRICT, FAST)
    assert again == first
    write_metrics(tmp_path / "metrics.json", again.figures("grounding.zero_shot"))
    tree = json.loads((tmp_path / "metrics.json").read_text())["grounding"]["zero_shot"]
    assert tree["mdice"]["value"] == pytest.approx(0.375)
    assert tree["by_modality"]["x-ray_v1_2"]["mdice"]["n"] == 4
    assert tree["absent"]["false_positive_rate"]["protocol"] == "strict"


@pytest.mark.parametrize(
    ("scores", "match"),
    [([], "at least one"), ([score(0), score(0)], "case0.*one score per case"), ([score(0, protocol="upstream")], "case0.*'strict'")],
)
def test_bad_sets_are_refused(scores, match):
    with pytest.raises(InputError, match=match):
        summarise_grounding(scores, STRICT, FAST)


def test_policies_state_what_differs():
    assert "> 0.1" in UPSTREAM.policy
    assert "first target" in UPSTREAM.policy
    assert "> 0.5" in STRICT.policy
    assert "missing <SEG> on a present target = 0" in STRICT.policy
