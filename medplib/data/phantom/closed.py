"""Questions with a closed answer, balanced so that the wording alone leaves one at chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medplib.data.phantom import catalog
from medplib.data.phantom.case import Facts
from medplib.data.phantom.ledger import Ledger
from medplib.data.phantom.records import Conversation
from medplib.data.phantom.templates import Kind, with_article

# An area share below the first is small, above the second large; between them nobody is asked.
FINDING_SIZES = (0.022, 0.030)
ANATOMY_SIZES = (0.050, 0.065)
CLEARLY_LARGER = 1.35

KINDS: tuple[Kind, ...] = ("exists", "contains", "side", "size", "larger", "modality")
_WEIGHTS = np.array([0.26, 0.16, 0.16, 0.16, 0.16, 0.10])


@dataclass(frozen=True)
class Candidate:
    """A question that could be asked: what it is about (`a`, `b`), the right answer and all possible answers."""

    kind: Kind
    answer: str
    options: tuple[str, ...]
    a: str = ""
    b: str = ""


def _exists(facts: Facts) -> Iterator[Candidate]:
    for name in catalog.names_of(facts.modality, facts.region):
        yield Candidate("exists", "yes" if facts.find(name) else "no", ("yes", "no"), name)


def _contains(facts: Facts) -> Iterator[Candidate]:
    rule = catalog.REGIONS[facts.region]
    hosts = [host for host in rule.hosts if facts.find(host)]
    for name in catalog.FINDINGS[facts.modality.group]:
        seen = facts.find(name)
        for host in hosts:
            yield Candidate("contains", "yes" if seen and host in seen.hosts else "no", ("yes", "no"), name, host)


def _side(facts: Facts) -> Iterator[Candidate]:
    if facts.modality.group == "radiological":
        for seen in facts.seen:
            if seen.is_finding and seen.side is not None:
                yield Candidate("side", seen.side, ("left", "right"), seen.name)


def _size(facts: Facts) -> Iterator[Candidate]:
    for seen in facts.seen:
        small, large = FINDING_SIZES if seen.is_finding else ANATOMY_SIZES
        if seen.instances == 1 and not small < seen.fraction < large:
            yield Candidate("size", "small" if seen.fraction <= small else "large", ("small", "large"), seen.name)


def _larger(facts: Facts) -> Iterator[Candidate]:
    single = [seen for seen in facts.seen if seen.instances == 1]
    for first in single:
        for second in single:
            ratio = first.fraction / second.fraction
            if first.name != second.name and first.is_finding == second.is_finding and not 1 / CLEARLY_LARGER < ratio < CLEARLY_LARGER:
                answer = first.name if ratio > 1 else second.name
                yield Candidate("larger", answer, (first.name, second.name), first.name, second.name)


def _candidates(kind: Kind, facts: Facts) -> list[Candidate]:
    """All questions of a kind that this case can answer without doubt."""
    if kind == "modality":
        return [Candidate("modality", facts.modality.name, tuple(m.name for m in catalog.MODALITIES))]
    makers = {"exists": _exists, "contains": _contains, "side": _side, "size": _size, "larger": _larger}
    return list(makers[kind](facts))


def _cell(candidate: Candidate, facts: Facts) -> tuple[str, ...]:
    """What is balanced together: the kind and the structures, in training also the modality.

    Pairs are rare, and the smaller splits too small for cells that fine: those are balanced over all modalities.
    """
    if candidate.kind == "modality":
        return (candidate.kind,)
    if candidate.kind == "larger":
        return (candidate.kind, *sorted((candidate.a, candidate.b)))
    return (candidate.kind, candidate.a, candidate.b, facts.modality.name if facts.split == "train" else "")


def _pick(kind: Kind, facts: Facts, ledger: Ledger, used: set[tuple[str, ...]], rng: np.random.Generator) -> Candidate | None:
    """A candidate whose answer is not ahead of the other answers of its cell; None when every cell is waiting for the other one."""
    due = []
    for candidate in _candidates(kind, facts):
        cell = _cell(candidate, facts)
        counts = ledger.answers[cell]
        ahead = kind != "modality" and counts[candidate.answer] > min(counts[option] for option in candidate.options)
        if not ahead and cell not in used:
            due.append((ledger.asked(cell) + 6 * rng.random(), candidate))
    return min(due, key=lambda pair: pair[0])[1] if due else None


def ask_closed(facts: Facts, ledger: Ledger, rng: np.random.Generator) -> list[Conversation]:
    """Four to six closed questions about a case (fewer when balance leaves none to ask)."""
    wanted = int(rng.integers(4, 7))
    asked: list[Conversation] = []
    used: set[tuple[str, ...]] = set()
    kinds = [KINDS[i] for i in rng.choice(len(KINDS), size=12, p=_WEIGHTS)]
    for kind in kinds:
        if len(asked) == wanted:
            break
        candidate = _pick(kind, facts, ledger, used, rng)
        if candidate is None:
            continue
        cell = _cell(candidate, facts)
        used.add(cell)
        ledger.add(cell, candidate.answer)
        side = "" if kind == "modality" else candidate.answer  # eight answers: take wordings in turn
        wording = ledger.wording(kind, (candidate.a, candidate.b), side, facts.split != "train", rng)
        text = wording.format(a=candidate.a, b=candidate.b, an=with_article(candidate.a))
        asked.append(Conversation(facts, "vqa_closed", text, candidate.answer, answer_type="closed", cell=cell))
    return asked


def level(conversations: list[Conversation], ledger: Ledger) -> list[Conversation]:
    """Drop the last question of each cell that ended one answer ahead, so that every cell is exactly even (modality excepted)."""
    surplus: Counter[tuple[tuple[str, ...], str]] = Counter()
    for cell, counts in ledger.answers.items():
        if cell[0] in KINDS and cell[0] != "modality" and counts:
            two = counts.most_common(2)
            surplus[(cell, two[0][0])] = two[0][1] - (two[1][1] if len(two) > 1 else 0)
    kept = []
    for conversation in reversed(conversations):
        key = (conversation.cell, conversation.answer)
        if surplus[key] > 0:
            surplus[key] -= 1
        else:
            kept.append(conversation)
    return kept[::-1]
