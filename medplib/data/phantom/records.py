"""The JSON objects of the conversations: the official MeCoVQA schema and this project's `meta` beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from medplib.data.phantom.case import Facts

Task = Literal["caption", "vqa_closed", "vqa_open", "region", "grounding"]


@dataclass(frozen=True)
class NamedTarget:
    """A structure that a question asks to be located; `mask` is relative to the root, None when it is absent."""

    name: str
    mask: str | None
    turn: int = 1


@dataclass(frozen=True)
class Conversation:
    """One question about one case, with its answer. `cell` names what the question was balanced over (not written)."""

    facts: Facts
    task: Task
    question: str
    answer: str
    targets: tuple[NamedTarget, ...] = ()
    answer_type: Literal["open", "closed"] | None = None
    cell: tuple[str, ...] = ()

    def to_json(self, number: int) -> dict[str, object]:
        """The object as written; `number` makes the id unique among the questions of the file about this image."""
        facts = self.facts
        out: dict[str, object] = {
            "id": f"{facts.stem}--{self.task}_{number:02d}",
            "image": f"images/{facts.stem}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{self.question}"},
                {"from": "gpt", "value": self.answer},
            ],
        }
        if self.answer_type is not None:
            out["answer_type"] = self.answer_type
        out["meta"] = {
            "source": "phantom",
            "modality": facts.modality.name,
            "anatomy": facts.region,
            "task": self.task,
            "patient": facts.case,
            "present": [seen.name for seen in facts.seen],
            "targets": [asdict(target) for target in self.targets],
        }
        return out


def dump(conversations: list[Conversation]) -> str:
    """A file of conversations as text, one in a line; ids count the questions per image."""
    numbers: dict[str, int] = {}
    objects = []
    for conversation in conversations:
        stem = conversation.facts.stem
        numbers[stem] = numbers.get(stem, 0) + 1
        objects.append(conversation.to_json(numbers[stem]))
    return "[\n" + ",\n".join(map(json.dumps, objects)) + "\n]\n"
