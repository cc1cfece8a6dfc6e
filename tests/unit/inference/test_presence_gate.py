"""The decision between a mask and a refusal: asked only where the language model hesitates, at any word of the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medplib.inference.calibration import PresenceCalibration
from medplib.inference.gate import ListedNames, PresenceGate

SEG, NOT, YES = 2, 1, 0


def _gate(threshold: float | None, rows: int = 1, *, legacy: bool = False, asked: tuple[tuple[int, ...], ...] = ()) -> PresenceGate:
    rule = None if threshold is None else PresenceCalibration(("language model",), (1.0,), 0.0, threshold, "test", 1, 1)
    model = SimpleNamespace(grounder=SimpleNamespace(presence=None))
    predictor = SimpleNamespace(
        seg_id=SEG, refusal_ids=[NOT], comma_id=9, calibration=rule, model=model, config=SimpleNamespace(legacy=legacy)
    )
    return PresenceGate(predictor, object(), torch.arange(rows), scored=True, asked=[asked] * rows)


def _ask(gate: PresenceGate, step: int, *rows: tuple[float, float, float], live: list[bool] | None = None) -> list[int]:
    probabilities = torch.tensor(rows)
    alive = torch.tensor(live if live is not None else [True] * len(rows))
    return gate.decide(step, torch.zeros(len(rows), 4), probabilities.log(), alive).tolist()


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(
    ("threshold", "probabilities", "said"),
    [
        (0.3, (0.0, 0.6, 0.4), SEG),  # the rule's threshold lies below the language model's own
        (0.7, (0.35, 0.05, 0.6), NOT),  # above: it is refused, whatever else is likely
        (0.01, (0.6, 0.2, 0.2), YES),  # neither a mask nor a refusal: hardly a question for a mask
        (None, (0.0, 0.6, 0.4), NOT),  # without a rule the most likely word
    ],
)
def test_what_is_said(step: int, threshold: float | None, probabilities: tuple[float, float, float], said: int) -> None:
    assert _ask(_gate(threshold), step, probabilities) == [said]


def test_scores_of_the_first_word_are_kept_and_each_mask_has_its_own() -> None:
    gate = _gate(0.5, rows=2)
    _ask(gate, 0, (0.8, 0.1, 0.1), (0.1, 0.1, 0.8))
    _ask(gate, 1, (0.1, 0.0, 0.9), (0.0, 0.3, 0.7), live=[True, False])
    assert gate.lm_logit == pytest.approx([-2.1972, 1.3863], abs=1e-3)
    assert gate.decisions[0] == pytest.approx([0.9])  # the first word of row 0 was no decision
    assert gate.decisions[1] == pytest.approx([0.8])
    assert gate.said[0] == pytest.approx([0.9])  # a finished row says nothing more
    assert gate.said[1] == pytest.approx([0.8])


COMMA, LEFT, KIDNEY, LUNG = 9, 10, 11, 12


@pytest.mark.parametrize(
    ("said", "repeats"),
    [
        ([], []),
        ([LEFT, KIDNEY], []),  # nothing is decided yet
        ([LEFT, KIDNEY, SEG, COMMA], []),  # "left" may begin another name
        ([LEFT, KIDNEY, SEG, COMMA, LEFT], [KIDNEY]),
        ([LEFT, KIDNEY, NOT, YES, COMMA, LEFT], [KIDNEY]),  # whatever the decision was, and the words behind it are no name
        ([LEFT, KIDNEY, NOT, LEFT], []),
        ([LUNG, SEG, COMMA], [LUNG]),
        ([LUNG, SEG, COMMA, LEFT, KIDNEY, SEG, COMMA], [LUNG]),
        ([SEG, COMMA, SEG, COMMA], []),  # masks without names may follow one another
    ],
)
def test_a_name_that_has_its_decision_is_not_completed_again(said: list[int], repeats: list[int]) -> None:
    names = ListedNames(COMMA)
    for token in said:
        names.note(token, decided=token in (SEG, NOT))
    assert names.repeats() == repeats


@pytest.mark.parametrize(("legacy", "last"), [(False, KIDNEY), (True, LUNG)])
def test_the_next_name_is_said_instead_of_one_that_has_its_decision(legacy: bool, last: int) -> None:
    gate = _gate(None, legacy=legacy)
    lung, seg, comma = (torch.full((1, 13), 1e-6).index_fill(1, torch.tensor([token]), 0.9) for token in (LUNG, SEG, COMMA))
    again = lung.index_fill(1, torch.tensor([KIDNEY]), 0.05)
    said = [int(gate.decide(step, torch.zeros(1, 4), p.log(), torch.tensor([True]))) for step, p in enumerate([lung, seg, comma, again])]
    assert said == [LUNG, SEG, COMMA, last]


LIST = ((LEFT, KIDNEY), (LUNG,), (LEFT, LUNG))


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ([], []),  # the answer need not be a list
        ([LUNG], []),
        ([LUNG, SEG], []),  # it may end
        ([LUNG, SEG, COMMA], [LEFT, LEFT]),
        ([LUNG, SEG, COMMA, LEFT], [KIDNEY, LUNG]),
        ([LUNG, SEG, COMMA, LEFT, KIDNEY], []),  # the decision is due
        ([LUNG, NOT, YES, COMMA, LEFT, KIDNEY, SEG, COMMA, LEFT], [LUNG]),
        ([LUNG, SEG, COMMA, LEFT, KIDNEY, SEG, COMMA, LEFT, LUNG, SEG, COMMA], []),  # nothing is left
        ([KIDNEY, SEG, COMMA], []),  # another list than that of the question
        ([SEG, COMMA], []),
    ],
)
def test_a_list_goes_on_with_what_the_question_lists(said: list[int], due: list[int]) -> None:
    names = ListedNames(COMMA, LIST)
    for token in said:
        names.note(token, decided=token in (SEG, NOT))
    assert names.due() == due
    free = ListedNames(COMMA)
    for token in said:
        free.note(token, decided=token in (SEG, NOT))
    assert free.due() == []


@pytest.mark.parametrize(("legacy", "last"), [(False, LEFT), (True, YES)])
def test_what_is_due_is_said_instead_of_what_is_not_asked_for(legacy: bool, last: int) -> None:
    gate = _gate(None, legacy=legacy, asked=LIST)
    lung, seg, comma, other = (torch.full((1, 13), 1e-6).index_fill(1, torch.tensor([token]), 0.9) for token in (LUNG, SEG, COMMA, YES))
    said = [int(gate.decide(step, torch.zeros(1, 4), p.log(), torch.tensor([True]))) for step, p in enumerate([lung, seg, comma, other])]
    assert said == [LUNG, SEG, COMMA, last]
