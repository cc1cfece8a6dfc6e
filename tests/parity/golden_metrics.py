"""The upstream protocol beside stored values of the published metric code (300 mask pairs, 200 answer pairs)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch

from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.normalise import upstream_normalise
from medplib.evaluation.protocols import UPSTREAM, upstream_modality
from medplib.evaluation.segmentation import GroundingCase, GroundingScore, Overlap, lisa_scores, score_case
from medplib.evaluation.text import TextCase, summarise_vqa, text_metrics, text_score
from tests.parity.fixtures import Row

DATA = Path(__file__).parent / "data" / "metrics"
FAST = Bootstrap(resamples=100)


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


def metric_rows() -> Iterator[Row]:
    """Masks per pair and together, answers per pair and together."""
    yield from _mask_pairs()
    yield from _mask_aggregates()
    yield from _answer_pairs()
    for kinds in ("as_given", "all_open", "all_closed"):
        yield from _answer_aggregates(kinds)


def _mask_pairs() -> Iterator[Row]:
    pairs, expected = stored("seg_pairs.json"), stored("seg_expected.json")["per_image"]
    # A sigmoid of another math library may put single threshold_edge pixels on the other side.
    edge = [
        abs(s.pred_pixels - w["pred_pixels"]) for p, s, w in zip(pairs, scores(), expected, strict=True) if p["kind"] == "threshold_edge"
    ]
    yield Row("masks", "pixels of threshold-edge pairs", float(max(edge)), 4, 4)
    same = [
        (s, w)
        for p, s, w in zip(pairs, scores(), expected, strict=True)
        if p["kind"] != "threshold_edge" or s.pred_pixels == w["pred_pixels"]
    ]
    for theirs, ours in (("gt_pixels", "target_pixels"), ("pred_pixels", "pred_pixels"), ("intersection",) * 2, ("union",) * 2):
        yield Row("masks", f"{theirs} ({len(same)} pairs)", float(max(abs(getattr(s, ours) - w[theirs]) for s, w in same)), 0, 0)
    for name in ("iou", "dice"):
        yield Row("masks", f"{name} ({len(same)} pairs)", max(abs(getattr(s, name) - w[name]) for s, w in same), 1e-6, 1e-6)


def _mask_aggregates() -> Iterator[Row]:
    want = stored("seg_expected.json")["aggregate"]
    summary = summarise_grounding(scores(), UPSTREAM, FAST)
    lisa = lisa_scores(Overlap(s.intersection, s.union, s.pred_pixels, s.target_pixels) for s in scores())
    macro = want["macro_over_modalities"]
    pairs = {
        "mIoU": (summary.miou.value, want["mIoU"]),
        "mDice": (summary.mdice.value, want["mDice"]),
        "macro mIoU": (summary.macro_miou.value, macro["mIoU"]),
        "macro mDice": (summary.macro_mdice.value, macro["mDice"]),
        "cIoU": (lisa.ciou, want["train_cIoU"]),
        "gIoU": (lisa.giou, want["train_gIoU"]),
    }
    for name, (ours, theirs) in pairs.items():
        yield Row("masks together", name, abs(ours - theirs), 1e-6, 1e-6)
    counts = {name: group.mdice.n for name, group in summary.by_modality.items()}
    yield Row("masks together", "pairs per modality", float(counts != {k: v["n"] for k, v in want["per_modality"].items()}), 0, 0)
    worst = max(
        abs(value - theirs)
        for name, values in want["per_modality"].items()
        for value, theirs in (
            (summary.by_modality[name].miou.value, values["iou"]),
            (summary.by_modality[name].mdice.value, values["dice"]),
        )
    )
    yield Row("masks together", "IoU and Dice per modality", worst, 2e-6, 2e-6)  # stored with 6 decimals


def _answer_pairs() -> Iterator[Row]:
    pairs, expected = stored("text_pairs.json"), stored("text_expected.json")["per_pair"]
    wrong = sum(
        upstream_normalise(pair[side]) != want[f"normalized_{side}"]
        for pair, want in zip(pairs, expected, strict=True)
        for side in ("gt", "text")
    )
    yield Row("answers", f"normalised strings ({len(pairs)} pairs)", float(wrong), 0, 0)
    metrics = [text_metrics(pair["text"], pair["gt"]) for pair in pairs]
    for theirs, ours in FIELDS.items():
        worst = max(abs(float(getattr(m, ours)) - float(want[theirs])) for m, want in zip(metrics, expected, strict=True))
        yield Row("answers", f"{theirs} ({len(pairs)} pairs)", worst, 1e-6, 1e-6)


def _answer_aggregates(kinds: str) -> Iterator[Row]:
    want = stored("text_expected.json")["aggregate"][kinds]
    cases = [
        TextCase(str(p["question_id"]), "", "fixture", str(p["question_id"]), "", kind, p["gt"], p["text"])
        for p in stored("text_pairs.json")
        for kind in [p["answer_type"] if kinds == "as_given" else kinds.removeprefix("all_")]
    ]
    summary = summarise_vqa([text_score(case) for case in cases], FAST)
    # The published table prints 0 where a kind of question is missing; ours has no such figure.
    closed = 100 * summary.closed["upstream_closed"].value if summary.closed else 0.0
    differences = [abs(closed - want["yes/no accuracy"])]
    for theirs, ours in TABLE.items():
        differences.append(abs((100 * summary.open[ours].value if summary.open else 0.0) - want[theirs]))
    yield Row("answers together", f"table, {kinds.replace('_', ' ')} (percent)", max(differences), 1e-4, 1e-4)
