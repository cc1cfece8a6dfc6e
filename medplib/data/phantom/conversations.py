"""All conversations of a split: captions, descriptions, regions, closed questions and grounding requests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medplib.data.phantom.case import Facts, Seen
from medplib.data.phantom.closed import ask_closed, level
from medplib.data.phantom.config import SPLITS, PhantomConfig
from medplib.data.phantom.grounding import ground, ground_held_out
from medplib.data.phantom.ledger import Ledger
from medplib.data.phantom.records import Conversation
from medplib.data.phantom.templates import with_article

_CONVERSATION_STREAM = 1_000_003  # keeps the random numbers of questions apart from those of images


@dataclass
class Questions:
    """The conversations of a split, by kind of file."""

    caption: list[Conversation] = field(default_factory=list)
    describe: list[Conversation] = field(default_factory=list)
    region: list[Conversation] = field(default_factory=list)
    closed: list[Conversation] = field(default_factory=list)
    grounding: list[Conversation] = field(default_factory=list)

    def all(self) -> list[Conversation]:
        """Every conversation of the split."""
        return [*self.caption, *self.describe, *self.region, *self.closed, *self.grounding]


def _mention(seen: Seen) -> list[str]:
    """How a description names a structure: "the liver"; "a cyst in the liver" once per host, "two cysts in the liver" for two in one."""
    if not seen.is_finding:
        return [f"the {seen.name}"]
    plural = seen.name if seen.name == "oedema" else f"{seen.name}s"
    hosts = dict.fromkeys(seen.hosts)
    return [f"two {plural} in the {h}" if seen.hosts.count(h) == 2 else f"{with_article(seen.name)} in the {h}" for h in hosts]


def sentence(facts: Facts) -> str:
    """One sentence that names everything visible, in the order of the catalogue."""
    mentions = [mention for seen in facts.seen for mention in _mention(seen)]
    start = f"This {facts.modality.name} image of the {facts.region} shows"
    if not mentions:
        return f"{start} no structure."
    listed = mentions[0] if len(mentions) == 1 else f"{', '.join(mentions[:-1])} and {mentions[-1]}"
    return f"{start} {listed}."


def _plain(kind: str, facts: Facts, ledger: Ledger, rng: np.random.Generator) -> Conversation:
    if kind == "caption":
        text = ledger.wording("caption", (), "", facts.split != "train", rng)
        return Conversation(facts, "caption", text, sentence(facts))
    text = ledger.wording("describe", (), "", facts.split != "train", rng)
    return Conversation(facts, "vqa_open", text, sentence(facts), answer_type="open")


def _regions(facts: Facts, ledger: Ledger, rng: np.random.Generator) -> list[Conversation]:
    """One to three questions about marked structures; names that were asked least in this modality come first."""
    seen_by_need = sorted(facts.seen, key=lambda s: ledger.asked(("region", s.name, facts.modality.name)) + 3 * rng.random())
    asked = []
    for seen in seen_by_need[: int(rng.integers(1, 4))]:
        instance = int(rng.integers(seen.instances))
        answer = f"{seen.name} in the {seen.hosts[instance]}" if seen.is_finding else seen.name
        ledger.add(("region", seen.name, facts.modality.name), answer)
        mark = f"<region>{facts.mask_path(seen.name, instance + 1)}</region>"
        text = ledger.wording("region", (), "", facts.split != "train", rng).format(r=mark)
        asked.append(Conversation(facts, "region", text, answer, answer_type="open"))
    return asked


def build_questions(config: PhantomConfig, split: str, cases: list[Facts]) -> Questions:
    """Ask about every case of a split, in order. The zero-shot split has grounding requests for held-out structures only."""
    ledger, questions = Ledger(), Questions()
    for facts in cases:
        stream = np.random.SeedSequence([config.seed, SPLITS.index(split), facts.index, _CONVERSATION_STREAM])
        rng = np.random.default_rng(stream)
        if split == "zero_shot":
            questions.grounding += ground_held_out(facts, ledger, rng)
            continue
        questions.caption.append(_plain("caption", facts, ledger, rng))
        questions.describe.append(_plain("describe", facts, ledger, rng))
        questions.region += _regions(facts, ledger, rng)
        questions.closed += ask_closed(facts, ledger, rng)
        questions.grounding += ground(facts, ledger, config.present_share, rng)
    questions.closed = level(questions.closed, ledger)
    return questions
