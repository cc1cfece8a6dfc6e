"""The upstream protocol against stored values of the published metric code (300 mask pairs, 200 answer pairs)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.normalise import upstream_normalise
from medplib.evaluation.protocols import UPSTREAM, upstream_modality
from medplib.evaluation.segmentation import GroundingCase, GroundingScore, Overlap, lisa_scores, score_case
from medplib.evaluation.text import TextCase, summarise_vqa, text_metrics, text_score

DATA = Path(__file__).parent / "data" / "metrics"
FAST = Bootstrap(resamples=100)


@cache
def stored(name: str) -> dict | list:
    return json.loads((DATA / name).read_text())


@cache
def scores() -> tuple[GroundingScore, ...]:
    arrays, pairs = np.load(DATA / "seg_pairs.npz"), stored("seg_pairs.json")
    ends = np.cumsum(arrays["shapes"].prod(1))[:-1]
    result = []
    for i, (logits, target) in enumerate(zip(np.split(arrays["logits"], ends), np.split(arrays["gt"], ends), strict=True)):
        shape = tuple(arrays["shapes"][i])
        result.append(
            score_case(
                GroundingCase(
                    id=str(i),
                    record=str(i),
                    source="fixture",
                    patient=str(i),
                    modality=upstream_modality(pairs[i]["file_name"]),
                    name="",
                    index=0,
                    target=target.reshape(shape),
                    mask_probability=torch.sigmoid(torch.from_numpy(logits.reshape(shape))).numpy(),
                ),
                UPSTREAM,
            )
        )
    return tuple(result)


def test_every_mask_pair():
    pairs, expected = stored("seg_pairs.json"), stored("seg_expected.json")["per_image"]
    assert len(scores()) == len(expected) == 300
    for pair, score, want in zip(pairs, scores(), expected, strict=True):
        # A sigmoid of another math library may put single threshold_edge pixels on the other side.
        slack = 4 if pair["kind"] == "threshold_edge" else 0
        assert score.target_pixels == want["gt_pixels"]
        assert abs(score.pred_pixels - want["pred_pixels"]) <= slack
        if score.pred_pixels == want["pred_pixels"]:
            assert (score.intersection, score.union) == (want["intersection"], want["union"])
            assert score.iou == pytest.approx(want["iou"], abs=1e-6)
            assert score.dice == pytest.approx(want["dice"], abs=1e-6)
            assert score.dice == pytest.approx(2 * score.iou / (1 + score.iou), abs=1e-12)


def test_mask_aggregates():
    want = stored("seg_expected.json")["aggregate"]
    summary = summarise_grounding(scores(), UPSTREAM, FAST)
    lisa = lisa_scores(Overlap(s.intersection, s.union, s.pred_pixels, s.target_pixels) for s in scores())
    pairs = [
        (summary.miou.value, want["mIoU"]),
        (summary.mdice.value, want["mDice"]),
        (summary.macro_miou.value, want["macro_over_modalities"]["mIoU"]),
        (summary.macro_mdice.value, want["macro_over_modalities"]["mDice"]),
        (lisa.ciou, want["train_cIoU"]),
        (lisa.giou, want["train_gIoU"]),
    ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert {name: group.mdice.n for name, group in summary.by_modality.items()} == {k: v["n"] for k, v in want["per_modality"].items()}
    for name, values in want["per_modality"].items():
        assert summary.by_modality[name].miou.value == pytest.approx(values["iou"], abs=2e-6)  # stored with 6 decimals
        assert summary.by_modality[name].mdice.value == pytest.approx(values["dice"], abs=2e-6)


FIELDS = {
    "closed_hit": "upstream_closed",
    "exact": "upstream_exact",
    "f1": "upstream_f1",
    "precision": "upstream_precision",
    "recall": "upstream_recall",
    "bleu": "upstream_bleu",
    "bleu_1": "upstream_bleu_1",
    "bleu_2": "upstream_bleu_2",
    "bleu_3": "upstream_bleu_3",
}


def test_every_answer_pair():
    pairs, expected = stored("text_pairs.json"), stored("text_expected.json")["per_pair"]
    assert len(pairs) == len(expected) == 200
    for pair, want in zip(pairs, expected, strict=True):
        assert upstream_normalise(pair["gt"]) == want["normalized_gt"]
        assert upstream_normalise(pair["text"]) == want["normalized_text"]
        metrics = text_metrics(pair["text"], pair["gt"])
        for theirs, ours in FIELDS.items():
            assert getattr(metrics, ours) == pytest.approx(want[theirs], abs=1e-6), (pair["question_id"], theirs)


TABLE = {
    "exact match acc score": "upstream_exact",
    "f1 score": "upstream_f1",
    "precision": "upstream_precision",
    "recall": "upstream_recall",
    "bleu_score": "upstream_bleu",
    "bleu_score_1": "upstream_bleu_1",
    "bleu_score_2": "upstream_bleu_2",
    "bleu_score_3": "upstream_bleu_3",
}


@pytest.mark.parametrize("kinds", ["as_given", "all_open", "all_closed"])
def test_answer_aggregates(kinds: str):
    want = stored("text_expected.json")["aggregate"][kinds]
    cases = [
        TextCase(str(p["question_id"]), "", "fixture", str(p["question_id"]), "", kind, p["gt"], p["text"])
        for p in stored("text_pairs.json")
        for kind in [p["answer_type"] if kinds == "as_given" else kinds.removeprefix("all_")]
    ]
    summary = summarise_vqa([text_score(case) for case in cases], FAST)
    # The published table prints 0 where a kind of question is missing; ours has no such figure.
    closed = 100 * summary.closed["upstream_closed"].value if summary.closed else 0.0
    assert closed == pytest.approx(want["yes/no accuracy"], abs=1e-4)
    for theirs, ours in TABLE.items():
        value = 100 * summary.open[ours].value if summary.open else 0.0
        assert value == pytest.approx(want[theirs], abs=1e-4), theirs
