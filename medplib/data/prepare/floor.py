"""The question-only floor: what closed questions give away without the image.

A model that looks has to beat it by more than the interval before its image can be said to matter.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from medplib.errors import InputError
from medplib.types import Record

_PENALTY = 0.5  # of the squared weights, against a summed loss: the usual default of library implementations (C = 1)


@dataclass(frozen=True)
class QuestionFloor:
    """Accuracy on closed questions (share of exact answers after lower-casing) without the image.

    `majority`: the commonest training answer for all; `per_question`: the commonest training answer to the same words, else that;
    `logistic`: logistic regression on words and word pairs.
    """

    n_train: int
    n_val: int
    majority: float
    per_question: float
    logistic: float
    majority_answer: str


def question_only_floor(train_records: Sequence[Record], val_records: Sequence[Record]) -> QuestionFloor:
    """Fit on the closed questions of `train_records`, score those of `val_records`; records of other tasks are not looked at.

    Raises:
        InputError: one side has no closed question.
    """
    train, val = _pairs(train_records), _pairs(val_records)
    if not train or not val:
        raise InputError(where="question-only floor", expected="closed questions on both sides", found=f"{len(train)} and {len(val)}")
    truth = [answer for _, answer in val]
    best = _commonest(answer for _, answer in train)
    by_words: dict[str, list[str]] = defaultdict(list)
    for question, answer in train:
        by_words[question].append(answer)
    answers = sorted({answer for _, answer in train})
    words = {word: i for i, word in enumerate(sorted({word for question, _ in train for word in _words(question)}))}
    labels = np.array([answers.index(answer) for _, answer in train])
    weights_WC = _fit(_features(train, words), labels, len(answers))
    guesses = (_features(val, words) @ weights_WC).argmax(axis=1)
    return QuestionFloor(
        n_train=len(train),
        n_val=len(val),
        majority=_accuracy([best] * len(val), truth),
        per_question=_accuracy([_commonest(by_words.get(question, [best])) for question, _ in val], truth),
        logistic=_accuracy([answers[i] for i in guesses], truth),
        majority_answer=best,
    )


def _pairs(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(question, answer) of every closed exchange, lower-case, single spaces."""
    closed = [record for record in records if record.meta.task == "vqa_closed"]
    pairs = [pair for record in closed for pair in zip(record.turns[::2], record.turns[1::2], strict=True)]
    return [(_normal(q.text.replace("<image>", " ")), _normal(a.text)) for q, a in pairs]


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _words(question: str) -> list[str]:
    """Words and pairs of neighbours."""
    words = re.findall(r"[a-z0-9]+", question)
    return [*words, *map(" ".join, pairwise(words))]


def _commonest(answers: Iterable[str]) -> str:
    """The commonest; of equals the first in the alphabet."""
    return min(Counter(answers).items(), key=lambda item: (-item[1], item[0]))[0]


def _accuracy(guesses: Sequence[str], truth: Sequence[str]) -> float:
    return sum(guess == answer for guess, answer in zip(guesses, truth, strict=True)) / len(truth)


def _features(pairs: Sequence[tuple[str, str]], words: dict[str, int]) -> csr_matrix:
    """(questions, words + 1): 1 where a word occurs; the last column is the constant."""
    cells = [(row, words[word]) for row, (question, _) in enumerate(pairs) for word in set(_words(question)) if word in words]
    cells += [(row, len(words)) for row in range(len(pairs))]
    rows, columns = zip(*cells, strict=True)
    return csr_matrix((np.ones(len(cells)), (rows, columns)), shape=(len(pairs), len(words) + 1))


def _fit(x_NW: csr_matrix, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Weights (words + 1, classes) of a multinomial logistic regression with squared penalty, by L-BFGS; the constant is not penalised."""
    one_hot_NC = np.eye(classes)[labels_N]
    penalised_W1 = np.ones((x_NW.shape[1], 1))
    penalised_W1[-1] = 0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights_WC = flat.reshape(-1, classes)
        scores_NC = x_NW @ weights_WC
        scores_NC -= scores_NC.max(axis=1, keepdims=True)
        log_p_NC = scores_NC - np.log(np.exp(scores_NC).sum(axis=1, keepdims=True))
        gradient_WC = x_NW.T @ (np.exp(log_p_NC) - one_hot_NC) + 2 * _PENALTY * penalised_W1 * weights_WC
        return float(_PENALTY * (penalised_W1 * weights_WC**2).sum() - (one_hot_NC * log_p_NC).sum()), gradient_WC.ravel()

    return minimize(loss, np.zeros(x_NW.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(-1, classes)
