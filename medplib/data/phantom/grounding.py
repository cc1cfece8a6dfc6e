"""Questions that ask for something to be located: one to three structures, visible or not."""

from __future__ import annotations

import numpy as np

from medplib.data.answers import locating_answer
from medplib.data.phantom import catalog
from medplib.data.phantom.case import Facts
from medplib.data.phantom.ledger import Ledger
from medplib.data.phantom.records import Conversation, NamedTarget

SEVERAL_SHARE = 0.5
THIRD_SHARE = 0.35
"""Of the requests for several structures, those for three. Balance leaves fewer of both: about a third of all requests are for several."""
EASY_ABSENT_SHARE = 0.03
FINDING_WEIGHT = 2.0
"""A finding belongs to every region and so has more cells than an anatomy; each of its cells is asked about half as often."""


def _target(facts: Facts, name: str) -> NamedTarget:
    seen = facts.find(name)
    return NamedTarget(name, None if seen is None else facts.target_path(seen))


def answer_text(targets: tuple[NamedTarget, ...]) -> str:
    """The answer to a request for one or several targets, with one `<SEG>` per visible target."""
    return locating_answer([(t.name, None if t.mask is None else f"<SEG><mask>{t.mask}</mask>") for t in targets])


def _cell(facts: Facts, name: str) -> tuple[str, ...]:
    return ("ground", name, facts.modality.name, facts.region)


def _answer(facts: Facts, name: str) -> str:
    return "absent" if facts.find(name) is None else "present"


def _candidates(facts: Facts) -> list[str]:
    """Structures that an image of this modality and region may show and that are not held out."""
    names = catalog.names_of(facts.modality, facts.region)
    return [name for name in names if not catalog.is_held_out(facts.modality.name, name)]


def _surplus(facts: Facts, name: str, ledger: Ledger, share: float) -> float:
    """How far asking for `name` would bring its cell out of balance; 0 where it does not."""
    answer = _answer(facts, name)
    over = ledger.deviation(_cell(facts, name), answer, share if answer == "present" else 1 - share)
    return max(0.0, round(over - 0.7, 2))


def _next_name(facts: Facts, left: list[str], ledger: Ledger, share: float, rng: np.random.Generator) -> str:
    """The candidate whose cell most needs the answer this case gives; rarely asked cells first among equals."""

    def need(name: str) -> tuple[float, float]:
        weight = FINDING_WEIGHT if name in catalog.ALL_FINDINGS else 1.0
        return (_surplus(facts, name, ledger, share), weight * (ledger.asked(_cell(facts, name)) + rng.random() * 4))

    return min(left, key=need)


def _easy_absent(facts: Facts, rng: np.random.Generator) -> str:
    """A structure of another region or modality, which this kind of image cannot show."""
    possible = catalog.names_of(facts.modality, facts.region)
    pool = [n for n in catalog.CLASS_IDS if n not in possible and not catalog.is_held_out(facts.modality.name, n)]
    return str(rng.choice(pool))


def _ask(facts: Facts, names: list[str], ledger: Ledger, rng: np.random.Generator) -> Conversation:
    targets = tuple(_target(facts, name) for name in names)
    unseen = facts.split != "train"
    answers = "/".join(_answer(facts, name) for name in names)
    if len(names) == 1:
        text = ledger.wording("ground_one", (names[0],), answers, unseen, rng).format(a=names[0])
    else:
        text = ledger.wording("ground_two", (), answers, unseen, rng).format(a=", the ".join(names[:-1]), b=names[-1])
    return Conversation(facts, "grounding", text, answer_text(targets), targets)


def ground(facts: Facts, ledger: Ledger, share: float, rng: np.random.Generator) -> list[Conversation]:
    """Three to five requests about a case; per modality, region and name about `share` of the named structures are visible."""
    left = _candidates(facts)
    asked = []
    for _ in range(min(int(rng.integers(3, 6)), len(left))):
        if rng.random() < EASY_ABSENT_SHARE:
            asked.append(_ask(facts, [_easy_absent(facts, rng)], ledger, rng))
            continue
        names = [_next_name(facts, left, ledger, share, rng)]
        left.remove(names[0])
        if rng.random() < SEVERAL_SHARE:
            for _ in range(min(len(left), 2 if rng.random() < THIRD_SHARE else 1)):
                further = _next_name(facts, left, ledger, share, rng)
                if _surplus(facts, further, ledger, share) > 0:
                    break  # a list may be short, but what is asked for stays balanced
                names.append(further)
                left.remove(further)
            names = [names[i] for i in rng.permutation(len(names))]
        for name in names:
            ledger.add(_cell(facts, name), _answer(facts, name))
        asked.append(_ask(facts, names, ledger, rng))
        if not left:
            break
    return asked


def ground_held_out(facts: Facts, ledger: Ledger, rng: np.random.Generator) -> list[Conversation]:
    """One request for each held-out structure that an image of this modality and region may show."""
    names = [n for n in catalog.names_of(facts.modality, facts.region) if catalog.is_held_out(facts.modality.name, n)]
    return [_ask(facts, [name], ledger, rng) for name in names]
