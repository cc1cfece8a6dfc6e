"""Keeps questions balanced while they are chosen, so that a question alone never tells its answer.

Cases are visited in order and each choice depends only on the tallies so far and the case's own random numbers: the outcome does not
depend on how many workers drew the images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from medplib.data.phantom.templates import QUESTIONS, SEEN_TEMPLATES, Kind

Cell = tuple[str, ...]


@dataclass
class Ledger:
    """Tallies of answers per cell (kind, structure, modality, ...) and per wording."""

    answers: dict[Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wordings: dict[Cell, Counter[tuple[int, str]]] = field(default_factory=lambda: defaultdict(Counter))

    def deviation(self, cell: Cell, answer: str, share: float) -> float:
        """How far this answer's count would lie above `share` of the cell's total after one more; at most about 0.5 when due."""
        counts = self.answers[cell]
        return counts[answer] + 1 - share * (sum(counts.values()) + 1)

    def asked(self, cell: Cell) -> int:
        """How often the cell was asked."""
        return sum(self.answers[cell].values())

    def add(self, cell: Cell, answer: str) -> None:
        """Note an answer."""
        self.answers[cell][answer] += 1

    def wording(self, kind: Kind, subject: Cell, answer: str, unseen: bool, rng: np.random.Generator) -> str:
        """A wording of the kind: of those that this subject had with this answer least often, any.

        So the wordings are used evenly, and none tells the answer. The wordings kept from training are used too if `unseen`.
        """
        texts = QUESTIONS[kind]
        count = len(texts) if unseen else SEEN_TEMPLATES
        used = self.wordings[(kind, *subject)]
        chosen = int(min(rng.permutation(count), key=lambda i: used[(int(i), answer)]))
        used[(chosen, answer)] += 1
        return texts[chosen]
