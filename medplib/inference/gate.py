"""Where an answer decides between a mask and a refusal, and about what it has decided already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from medplib.models.features import ImageFeatures

if TYPE_CHECKING:
    from medplib.inference.predictor import Predictor


class ListedNames:
    """The names that one answer has decided about.

    Args:
        comma_id: the token between two names.
        asked: the names that the question lists.
    """

    def __init__(self, comma_id: int, asked: Sequence[tuple[int, ...]] = ()) -> None:
        self.comma_id, self.asked = comma_id, asked
        self.names: set[tuple[int, ...]] = set()
        self.begun: tuple[int, ...] | None = ()
        """Tokens of the name that is being said; None behind a decision, until the next comma."""

    def repeats(self) -> list[int]:
        """Tokens that would complete a name which has its decision."""
        return [] if self.begun is None else [name[-1] for name in self.names if name[:-1] == self.begun]

    def due(self) -> list[int]:
        """The tokens that go on with names which the question lists and the answer has not decided about; [] = any token may follow.

        Only while the answer goes through the question's list: all that it decided about stands there, and something is left.
        """
        if self.begun is None or not self.names or not self.names.issubset(self.asked):
            return []
        length, left = len(self.begun), [name for name in self.asked if name not in self.names]
        return [] if self.begun in left else [name[length] for name in left if name[:length] == self.begun and len(name) > length]

    def note(self, token: int, *, decided: bool) -> None:
        """Take the next token; `decided` where it is the choice between a mask and a refusal."""
        if token == self.comma_id:
            self.begun = ()
        elif decided:
            if self.begun:
                self.names.add(self.begun)
            self.begun = None
        elif self.begun is not None:
            self.begun = (*self.begun, token)


class PresenceGate:
    """Decides between `<SEG>` and a refusal wherever the language model hesitates between them; keeps the scores it saw.

    It hesitates where `<SEG>` and the words that start a refusal together have most of the probability; other answers are untouched.
    An answer about several things decides about each once: a name that has its decision is not begun again behind a comma, where a language
    model that lost its place would repeat it and never come to the next (as `no_repeat_ngram_size` of transformers does for n-grams).
    While it goes through a list in the question, what it names behind a comma is the rest of that list.

    `lm_logit` and `presence_logit` are those of the first answer token; `decisions` holds, per row, the probability at each decision,
    `said` that behind each `<SEG>`, in order.
    """

    ASKED = 0.5

    def __init__(
        self,
        predictor: Predictor,
        features: ImageFeatures | None,
        image_of_row: torch.Tensor,
        *,
        scored: bool,
        asked: Sequence[Sequence[tuple[int, ...]]],
    ) -> None:
        self.listed = [ListedNames(predictor.comma_id, names) for names in asked]
        self.predictor, self.features, self.image_of_row, self.scored = predictor, features, image_of_row, scored
        self.lm_logit: list[float] = []
        self.presence_logit: list[float | None] = []
        self.decisions: list[list[float]] = [[] for _ in image_of_row]
        self.said: list[list[float | None]] = [[] for _ in image_of_row]

    def decide(self, step: int, states: torch.Tensor, logprobs: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """See `medplib.inference.generate.Decide`."""
        seg_id = self.predictor.seg_id
        seg, rest = logprobs[:, seg_id], logprobs.clone()
        rest[:, seg_id] = -torch.inf
        lm_logit = seg - rest.logsumexp(dim=-1)
        refusals = self.predictor.refusal_ids
        asked = live & (seg.exp() + logprobs[:, refusals].exp().sum(dim=1) > self.ASKED)
        judged = live if step == 0 and self.scored else asked
        presence_logit = self._head(states, judged)
        probability = self._probability(lm_logit, presence_logit, judged)
        if step == 0:
            self.lm_logit, self.presence_logit = lm_logit.tolist(), presence_logit
        chosen = self._in_place(logprobs).argmax(dim=-1).tolist()  # from here on the CPU: an accelerator is waited for at every question
        refusal, hesitates = logprobs[:, refusals].argmax(dim=-1).tolist(), asked.tolist()
        for row, speaks in enumerate(live.tolist()):
            if hesitates[row] and probability[row] is not None:
                self.decisions[row].append(probability[row])
                present = probability[row] >= self.predictor.calibration.threshold
                chosen[row] = seg_id if present else refusals[refusal[row]]
            if speaks and chosen[row] == seg_id:
                self.said[row].append(probability[row])
            if speaks:
                self.listed[row].note(chosen[row], decided=hesitates[row])
        return torch.tensor(chosen, device=logprobs.device)

    def _in_place(self, logprobs: torch.Tensor) -> torch.Tensor:
        """The log-probabilities (B, V) of what may follow in a list of names; with legacy of everything, as published."""
        if self.predictor.config.legacy:
            return logprobs
        due = [(row, token) for row, names in enumerate(self.listed) for token in names.due()]
        if due:
            rows, tokens = (torch.tensor(places, device=logprobs.device) for places in zip(*due, strict=True))
            only = logprobs.index_fill(0, rows, -torch.inf)
            logprobs = only.index_put((rows, tokens), logprobs[rows, tokens])
        repeats = [(row, token) for row, names in enumerate(self.listed) for token in names.repeats()]
        if not repeats:
            return logprobs
        rows, tokens = zip(*repeats, strict=True)
        return logprobs.index_put((torch.tensor(rows), torch.tensor(tokens)), logprobs.new_tensor(-torch.inf))

    def _head(self, states: torch.Tensor, rows: torch.Tensor) -> list[float | None]:
        """The presence head's logit for the states of `rows` (B,) bool; None elsewhere and without a head."""
        model = self.predictor.model
        found: list[float | None] = [None] * len(states)
        if self.features is None or model.grounder.presence is None or not bool(rows.any()):
            return found
        out = model.grounder.decode(self.features, self.image_of_row[rows], model.seg_projector(states[rows]))
        for row, logit in zip(rows.nonzero().squeeze(1).tolist(), out.presence_logit.tolist(), strict=True):
            found[row] = logit
        return found

    def _probability(self, lm_logit: torch.Tensor, presence_logit: list[float | None], rows: torch.Tensor) -> list[float | None]:
        """The calibrated probability for `rows`; None elsewhere and without a calibration."""
        found: list[float | None] = [None] * len(rows)
        calibration = self.predictor.calibration
        if calibration is None or self.features is None:
            return found
        logits = {"language model": lm_logit.tolist(), "presence head": presence_logit}
        for row in rows.nonzero().squeeze(1).tolist():
            used = np.array([[logits[name][row] for name in calibration.names]], np.float64)
            found[row] = float(calibration.probability(used)[0])
        return found
