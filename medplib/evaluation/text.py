"""Scores of answers in words: the published ones with their quirks under names that say so, and strict ones. All are fractions of 1.

A score is made once per question and stored as one JSON line; `summarise_vqa` is a pure function of the stored scores.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import Figure, NamedFigure, Rule, key, named
from medplib.evaluation.normalise import normalise, upstream_normalise

_log = logging.getLogger(__name__)

Kind = Literal["closed", "open"]


@dataclass(frozen=True)
class TextMetrics:
    """Every text metric of one pair. Strict ones see `normalise`d words, `upstream_*` ones the published normaliser.

    exact: the normalised strings are equal.
    token_f1, token_precision, token_recall: multiset overlap of words (as in SQuAD); 1 if both are empty, 0 if one is.
    bleu4: cumulative sentence BLEU up to 4-grams, epsilon smoothing (Chen and Cherry 2014, method 1); orders longer than the prediction
    are left out.
    rouge_l: F of the longest common subsequence (Lin 2004).
    upstream_closed: exact equality; upstream_exact: distinct reference words found / prediction words; upstream_f1, _precision, _recall:
    words of the prediction that the reference has (every repeat counts), over all its words, and over those plus the reference words it
    lacks;
    upstream_bleu: unsmoothed 4-gram BLEU; upstream_bleu_1, _2, _3: that one n-gram order alone, not cumulative. 0 if either side is empty.
    """

    exact: float
    token_f1: float
    token_precision: float
    token_recall: float
    bleu4: float
    rouge_l: float
    upstream_closed: float
    upstream_exact: float
    upstream_f1: float
    upstream_precision: float
    upstream_recall: float
    upstream_bleu: float
    upstream_bleu_1: float
    upstream_bleu_2: float
    upstream_bleu_3: float


@dataclass(frozen=True)
class TextScore(TextMetrics):
    """The metrics of one question with what groups it; one line of JSON (`lines.write_lines`). Fields as in `GroundingCase`."""

    id: str
    record: str
    source: str
    patient: str
    modality: str
    kind: Kind

    @property
    def cluster(self) -> tuple[str, str, str]:
        """What is resampled as a whole: the patient of a source, or the record where the patient is unknown."""
        return (self.source, self.patient, "") if self.patient else (self.source, "", self.record)


@dataclass(frozen=True)
class TextCase:
    """A question's reference answer and the model's words."""

    id: str
    record: str
    source: str
    patient: str
    modality: str
    kind: Kind
    reference: str
    prediction: str


@lru_cache(maxsize=4096)
def text_metrics(prediction: str, reference: str) -> TextMetrics:
    """Every metric of one pair of strings, either of which may be empty. Closed questions have few pairs, asked again and again."""
    strict_p, strict_r = normalise(prediction).split(), normalise(reference).split()
    precision, recall, f1 = _token_overlap(strict_p, strict_r)
    once_p, once_r = upstream_normalise(prediction), upstream_normalise(reference)
    # The published word scores normalise the normalised text again, which matters after its 32-period limit; its BLEU does not.
    twice_p, twice_r = upstream_normalise(once_p).split(), upstream_normalise(once_r).split()
    words = Counter(twice_p)
    up_precision, up_recall, up_f1 = _upstream_overlap(words, set(twice_r), Counter(twice_r))
    bleu = [_upstream_bleu(once_p.split(), once_r.split(), w) for w in ((0.25,) * 4, (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))]
    return TextMetrics(
        exact=float(strict_p == strict_r),
        token_f1=f1,
        token_precision=precision,
        token_recall=recall,
        bleu4=_bleu4(strict_p, strict_r),
        rouge_l=_rouge_l(strict_p, strict_r),
        upstream_closed=float(once_p == once_r),
        upstream_exact=len(set(twice_r) & words.keys()) / words.total() if words else 0.0,
        upstream_f1=up_f1,
        upstream_precision=up_precision,
        upstream_recall=up_recall,
        upstream_bleu=bleu[0],
        upstream_bleu_1=bleu[1],
        upstream_bleu_2=bleu[2],
        upstream_bleu_3=bleu[3],
    )


def text_score(case: TextCase) -> TextScore:
    """Score one answer once.

    Raises:
        InputError: the reference is blank (there is nothing to compare with) or the kind is unknown. A blank prediction scores 0.
    """
    if not case.reference.strip():
        raise InputError(where=case.id, expected="a reference answer", found="blank text", remedy="correct or remove the question")
    if case.kind not in ("closed", "open"):
        raise InputError(where=case.id, expected="kind 'closed' or 'open'", found=repr(case.kind))
    metrics = text_metrics(case.prediction, case.reference)
    return TextScore(
        **vars(metrics),
        id=case.id,
        record=case.record,
        source=case.source,
        patient=case.patient,
        modality=case.modality,
        kind=case.kind,
    )


def _token_overlap(prediction: list[str], reference: list[str]) -> tuple[float, float, float]:
    """Precision, recall, F1 of the multisets of words."""
    if not prediction or not reference:
        same = float(prediction == reference)
        return same, same, same
    common = (Counter(prediction) & Counter(reference)).total()
    return common / len(prediction), common / len(reference), 2 * common / (len(prediction) + len(reference))


def _upstream_overlap(words: Counter[str], known: set[str], reference: Counter[str]) -> tuple[float, float, float]:
    hits = sum(count for word, count in words.items() if word in known)
    if hits == 0:
        return 0.0, 0.0, 0.0
    missed = sum(count for word, count in reference.items() if word not in words)
    precision, recall = hits / words.total(), hits / (hits + missed)
    return precision, recall, 2 * precision * recall / (precision + recall)


def _upstream_bleu(prediction: list[str], reference: list[str], weights: tuple[float, ...]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns of each missing order; without smoothing that is what the protocol asks for
        return float(sentence_bleu([reference], prediction, weights=weights))


def _bleu4(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    order = min(4, len(prediction))  # otherwise a right answer of one word would score 0.18
    return float(sentence_bleu([reference], prediction, weights=(1 / order,) * order, smoothing_function=SmoothingFunction().method1))


class _Words:
    """The tokenizer interface of rouge-score for text whose words are known; its own drops every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


_ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())


def _rouge_l(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    return float(_ROUGE.score(" ".join(reference), " ".join(prediction))["rougeL"].fmeasure)


_STRICT_OPEN = ("exact", "token_f1", "token_precision", "token_recall", "bleu4", "rouge_l")
_UPSTREAM_OPEN = tuple(f"upstream_{name}" for name in ("exact", "f1", "precision", "recall", "bleu", "bleu_1", "bleu_2", "bleu_3"))
_POLICY = {
    "strict": "own normaliser; empty prediction = 0",
    "upstream": "published normaliser; empty prediction or reference = 0; open and closed apart; BLEU-n is one order alone",
}


@dataclass(frozen=True)
class VqaSummary:
    """Figures of closed and open questions by metric name, overall and per modality; a block is empty without its kind of question.

    `macro_closed` and `macro_open_f1` are the strict exact accuracy and token F1 as means over modalities.
    """

    closed: dict[str, Figure]
    open: dict[str, Figure]
    closed_by_modality: dict[str, Figure]
    open_f1_by_modality: dict[str, Figure]
    macro_closed: Figure | None
    macro_open_f1: Figure | None

    def figures(self, prefix: str) -> list[NamedFigure]:
        """All figures under `prefix`, for metrics.json: `<prefix>.closed.exact`, `<prefix>.open.upstream_bleu_1`, ..."""
        items: list[tuple[str, Figure | None]] = [("macro_closed", self.macro_closed), ("macro_open_f1", self.macro_open_f1)]
        for block in ("closed", "open", "closed_by_modality", "open_f1_by_modality"):
            items += [(f"{block}.{name}", figure) for name, figure in getattr(self, block).items()]
        return named(prefix, items)


def summarise_vqa(scores: Sequence[TextScore], bootstrap: Bootstrap) -> VqaSummary:
    """Closed questions: equality after normalisation (strict `exact`, `upstream_closed`). Open ones: every open metric. Plain means.

    Raises:
        InputError: there is no score, or a question occurs twice.
    """
    ids = [(score.source, score.id) for score in scores]
    if not ids or len(set(ids)) < len(ids):
        found = f"{len(ids)} scores of {len(set(ids))} questions"
        raise InputError(where="text scores", expected="at least one score and one per question", found=found)
    closed, opened = [s for s in scores if s.kind == "closed"], [s for s in scores if s.kind == "open"]
    _log.info("%d closed and %d open questions, %d without a patient", len(closed), len(opened), sum(not s.patient for s in scores))
    return VqaSummary(
        closed=_means(closed, ("exact", "upstream_closed"), bootstrap),
        open=_means(opened, _STRICT_OPEN + _UPSTREAM_OPEN, bootstrap),
        closed_by_modality=_by_modality(closed, "exact", bootstrap),
        open_f1_by_modality=_by_modality(opened, "token_f1", bootstrap),
        macro_closed=_macro(closed, "exact", bootstrap),
        macro_open_f1=_macro(opened, "token_f1", bootstrap),
    )


def _rule(metric: str) -> Rule:
    protocol = "upstream" if metric.startswith("upstream_") else "strict"
    return Rule(metric, protocol, _POLICY[protocol])


def _means(scores: Sequence[TextScore], metrics: Sequence[str], bootstrap: Bootstrap) -> dict[str, Figure]:
    clusters = [s.cluster for s in scores]
    figures = {name: _rule(name).mean([getattr(s, name) for s in scores], clusters, bootstrap) for name in metrics}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _by_modality(scores: Sequence[TextScore], metric: str, bootstrap: Bootstrap) -> dict[str, Figure]:
    members: dict[str, list[TextScore]] = {}
    for score in scores:
        members.setdefault(key(score.modality), []).append(score)
    return {name: _means(group, (metric,), bootstrap)[metric] for name, group in sorted(members.items())}


def _macro(scores: Sequence[TextScore], metric: str, bootstrap: Bootstrap) -> Figure | None:
    values, groups = [getattr(s, metric) for s in scores], [key(s.modality) for s in scores]
    return _rule(metric).macro(values, groups, [s.cluster for s in scores], bootstrap, "modalities")
