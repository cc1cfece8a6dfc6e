from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.normalise import normalise, upstream_normalise
from medplib.evaluation.text import TextCase, summarise_vqa, text_metrics, text_score

FAST = Bootstrap(resamples=100)
CASE = TextCase("q", "r", "s", "p", "CT", "open", "the left kidney", "left kidney")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The Liver.", "liver"),
        ("T1-weighted MRI", "t1 weighted mri"),
        ("3.5 cm", "3.5 cm"),
        ("1,200 mm", "1200 mm"),
        ("1,2", "1 2"),
        ("Don’t know", "dont know"),
        ("two  lesions", "2 lesions"),
        ("none", "none"),
        ("<5 %", "5"),
        ("left_kidney", "left kidney"),
        ("Schädel", "schädel"),
        ("ﬁbrosis", "fibrosis"),
        ("a.", ""),
        ("yes, it is", "yes it is"),
        ("grade II.", "grade ii"),
        ("ends in 3.", "ends in 3"),
    ],
)
def test_normalise(text, want):
    assert normalise(text) == want


@given(st.text(max_size=40))
@settings(deadline=None)
def test_normalise_is_idempotent_and_plain(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("T1-weighted", "t1 weighted"),  # no space beside any mark of this kind: the mark becomes a space
        ("T1-weighted - MRI", "t1weighted mri"),  # one such mark touches a space: all of them vanish
        ("1,200 pet/ct", "1200 petct"),  # a comma between digits makes every mark vanish
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("3.5 mm.", "3.5 mm"),
        (". " * 40, ". . . . . . . ."),
    ],
)
def test_upstream_quirks(text, want):
    assert upstream_normalise(text) == want


# prediction, reference, field, value
TABLE = [
    ("Yes.", "yes", "exact", 1.0),
    ("Yes, there is", "yes", "exact", 0.0),
    ("", "yes", "exact", 0.0),
    ("left left kidney", "left kidney", "token_precision", 2 / 3),
    ("left left kidney", "left kidney", "token_recall", 1.0),
    ("left left kidney", "left kidney", "token_f1", 0.8),
    ("left left kidney", "left kidney", "upstream_precision", 1.0),  # every repeat counts as found
    ("left left kidney", "left kidney", "upstream_exact", 2 / 3),
    ("", "yes", "token_f1", 0.0),
    ("the", "a", "token_f1", 1.0),  # both empty after the articles
    ("the", "a", "bleu4", 1.0),
    ("the", "a", "upstream_f1", 0.0),
    ("liver", "liver", "bleu4", 1.0),
    ("liver", "liver", "upstream_bleu", 0.0),  # no 4-gram
    ("", "liver", "bleu4", 0.0),
    ("", "liver", "upstream_bleu", 0.0),
    ("large mass in right lobe", "large mass in right lobe", "bleu4", 1.0),
    ("w x y z", "x y z w", "rouge_l", 0.75),
    ("Schädel und Leber", "Leber", "rouge_l", 0.5),
    ("Schädel", "Schädel", "rouge_l", 1.0),
]


@pytest.mark.parametrize(("prediction", "reference", "field", "want"), TABLE)
def test_metrics_by_hand(prediction, reference, field, want):
    assert getattr(text_metrics(prediction, reference), field) == pytest.approx(want, abs=1e-9)


def test_bleu4_by_hand():
    # 5 words against 5: 4/5 unigrams, 3/4 bigrams, 2/3 trigrams, 1/2 4-grams, no brevity penalty.
    assert text_metrics("u v w x q", "u v w x y").bleu4 == pytest.approx((0.8 * 0.75 * 2 / 3 * 0.5) ** 0.25)


@given(st.text(max_size=30), st.text(max_size=30))
@settings(deadline=None, max_examples=60)
def test_every_metric_is_a_fraction_and_identity_is_perfect(prediction, reference):
    assert all(0 <= value <= 1 + 1e-12 for value in vars(text_metrics(prediction, reference)).values())
    same = text_metrics(reference, reference)
    assert [same.exact, same.token_f1, same.bleu4, same.rouge_l, same.upstream_closed] == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("change", [{"reference": " \n"}, {"kind": "other"}])
def test_bad_cases_are_named(change):
    with pytest.raises(InputError, match="q7"):
        text_score(replace(CASE, id="q7", **change))


def test_summary_by_hand(caplog):
    cases = [
        replace(CASE, id="1", kind="closed", reference="yes", prediction="Yes."),
        replace(CASE, id="2", kind="closed", reference="no", prediction="yes", modality="MR", patient="p2"),
        replace(CASE, id="3", kind="closed", reference="no", prediction="no", modality="MR", patient=""),
        replace(CASE, id="4", reference="left kidney", prediction="kidney", patient="p2"),
        replace(CASE, id="5", reference="left kidney", prediction="left kidney"),
    ]
    with caplog.at_level(logging.INFO):
        summary = summarise_vqa([text_score(c) for c in cases], FAST)
    assert "3 closed and 2 open questions, 1 without a patient" in caplog.text
    assert (summary.closed["exact"].value, summary.closed["exact"].n) == (pytest.approx(2 / 3), 3)
    assert summary.macro_closed.value == pytest.approx((1 + 0.5) / 2)
    assert summary.open["token_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert {k: f.n for k, f in summary.closed_by_modality.items()} == {"ct": 1, "mr": 2}
    assert summary.open["upstream_bleu_1"].protocol == "upstream"
    assert summary.open["bleu4"].protocol == "strict"
    names = [f.name for f in summary.figures("vqa")]
    assert len(names) == len(set(names))
    assert {"vqa.closed.exact", "vqa.open.rouge_l", "vqa.macro_closed", "vqa.closed_by_modality.mr"} <= set(names)


def test_one_kind_only():
    summary = summarise_vqa([text_score(CASE)], FAST)
    assert summary.closed == {}
    assert summary.macro_closed is None


def test_bad_sets_are_refused():
    with pytest.raises(InputError, match="at least one"):
        summarise_vqa([], FAST)
    with pytest.raises(InputError, match="2 scores of 1 questions"):
        summarise_vqa([text_score(CASE)] * 2, FAST)
