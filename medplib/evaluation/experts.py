"""The learned router beside something simpler that answered the same questions: an expert forced everywhere, or the expert's own stage."""

from __future__ import annotations

from dataclasses import dataclass

from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import Figure, NamedFigure, Rule, named
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.protocols import STRICT
from medplib.evaluation.results import Results
from medplib.evaluation.text import summarise_vqa


@dataclass(frozen=True)
class Rival:
    """Answers of one model (`name`) to the questions of the comparison; `grounding` is None for a model without a grounder."""

    name: str
    grounding: Results | None
    closed: Results


def compare(router: Rival, rivals: list[Rival], bootstrap: Bootstrap) -> list[NamedFigure]:
    """`controls.<name>.*` of all: mDice, claimed absent targets, closed accuracy; of the rivals also what the router gains on them.

    A gain is the mean over targets (questions) of the router's score less the rival's for the same one, so that its interval tells a
    difference from noise, which two intervals side by side do not.
    """
    return [figure for rival in (router, *rivals) for figure in _of(rival, None if rival is router else router, bootstrap)]


def _of(rival: Rival, router: Rival | None, bootstrap: Bootstrap) -> list[NamedFigure]:
    items: list[tuple[str, Figure | None]] = []
    if rival.grounding is not None:
        summary = summarise_grounding(rival.grounding.of(STRICT), STRICT, bootstrap)
        items.append(("mdice", summary.mdice))
        items.append(("false_positive_rate", None if summary.absent is None else summary.absent.false_positive_rate))
    items.append(("closed_accuracy", summarise_vqa(rival.closed.text, bootstrap).closed.get("exact")))
    if router is not None:
        items += [
            ("router_gain_mdice", _dice_gain(router, rival, bootstrap)),
            ("router_gain_closed", _closed_gain(router, rival, bootstrap)),
        ]
    return named(f"controls.{rival.name}", items)


def _dice_gain(router: Rival, rival: Rival, bootstrap: Bootstrap) -> Figure | None:
    if router.grounding is None or rival.grounding is None:
        return None
    theirs = {s.id: s.dice for s in rival.grounding.of(STRICT) if s.status == "present"}
    ours = [s for s in router.grounding.of(STRICT) if s.status == "present"]
    rule = Rule("router's Dice less this model's on the same target", STRICT.name, STRICT.policy)
    return rule.mean([s.dice - theirs[s.id] for s in ours], [s.cluster for s in ours], bootstrap)


def _closed_gain(router: Rival, rival: Rival, bootstrap: Bootstrap) -> Figure | None:
    theirs = {s.id: s.exact for s in rival.closed.text}
    ours = router.closed.text
    rule = Rule("router's score less this model's on the same question", "closed", "1 where the normalised answers are equal, else 0")
    return rule.mean([s.exact - theirs[s.id] for s in ours], [s.cluster for s in ours], bootstrap)
