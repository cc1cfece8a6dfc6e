"""What is watched while a stage trains: loss terms, `<SEG>` emission, mask overlap, router shares."""

from __future__ import annotations

from collections import defaultdict

import torch

from medplib.models.grounding import valid_mask
from medplib.ranks import gathered, world_size
from medplib.tokens import IGNORE_LABEL
from medplib.training.ranks import TERMS
from medplib.training.terms import Outcome
from medplib.types import Batch, GroundingOutput, ModelOutput

STARVED = 0.01


class ValidationScores:
    """Running means by name, weighted by how many items each stands for; emptied by `finish`."""

    def __init__(self) -> None:
        self._sum: dict[str, float] = defaultdict(float)
        self._count: dict[str, float] = defaultdict(float)

    def add(self, name: str, mean: float, count: float) -> None:
        """Add `count` items whose mean is `mean`."""
        if count:
            self._sum[name] += mean * count
            self._count[name] += count

    def add_terms(self, seen: Outcome, batch: Batch) -> None:
        """Add the loss terms of a batch, each weighted by the items that it is the mean of (samples where it is no plain mean)."""
        counts = dict(zip(TERMS, seen.counts.tolist(), strict=True))
        for name, value in seen.terms.items():
            self.add(name, float(value), counts.get(name, len(batch.input_ids)))

    def add_output(self, batch: Batch, out: ModelOutput, *, seg_id: int, expert_names: tuple[str, ...]) -> None:
        """Add teacher-forced rates: is `<SEG>` the most likely token where a target is decided, and at the start of other answers?"""
        target = batch.labels[:, 1:] != IGNORE_LABEL
        predicted = torch.full_like(batch.labels, -1)
        predicted[:, :-1][target] = out.label_logits.argmax(dim=-1)
        at_target = predicted[batch.target_row, batch.target_position]
        present, known = batch.target_present, at_target >= 0
        for name, where in (("seg_rate_present", known & present), ("seg_rate_absent", known & ~present)):
            self.add(name, float((at_target[where] == seg_id).float().mean()) if where.any() else 0.0, int(where.sum()))
        for row, records in enumerate(batch.records):
            if records[0].meta.task != "grounding" and bool(target[row].any()):
                start = int(target[row].nonzero()[0])
                self.add("seg_rate_other", float(predicted[row, start] == seg_id), 1)
        correct = (out.label_logits.argmax(dim=-1) == out.label_ids).float()
        self.add("token_accuracy", float(correct.mean()), len(correct))
        self._add_router(batch, out, expert_names)

    def add_masks(self, batch: Batch, grounding: GroundingOutput | None) -> None:
        """Add the Dice of present targets at grounder size, and the accuracy of the presence head at even odds."""
        if grounding is None or not len(batch.names):
            return
        if grounding.presence_logit is not None:
            for name, where in (("presence_recall", batch.target_present), ("presence_false_positives", ~batch.target_present)):
                self.add(name, float((grounding.presence_logit[where] > 0).float().mean()) if where.any() else 0.0, int(where.sum()))
        if not bool(batch.target_present.any()):
            return
        chosen = batch.target_present
        valid = valid_mask(batch.letterboxes, batch.target_masks.device)[batch.target_image][chosen]
        prediction = (grounding.mask_logits[chosen] > 0) & valid
        truth = batch.target_masks[chosen] >= 128
        overlap = (prediction & truth).sum(dim=(1, 2)).float()
        total = (prediction.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))).float()
        self.add("mask_dice_score", float((2 * overlap / total.clamp(min=1)).mean()), len(overlap))

    def _add_router(self, batch: Batch, out: ModelOutput, expert_names: tuple[str, ...]) -> None:
        """Share of tokens per expert, by task of the first conversation of each row."""
        if out.router is None:
            return
        rows = batch.attention_mask.nonzero()[:, 0]
        for row, records in enumerate(batch.records):
            mine = rows == row
            for index, name in enumerate(expert_names):
                share = (out.router.chosen[:, mine] == index).float().mean()
                self.add(f"router/{records[0].meta.task}/{name}", float(share), 1)

    def starved(self, expert_names: tuple[str, ...]) -> list[str]:
        """Experts that get less than STARVED of the tokens of every task: the router has collapsed, or is about to."""
        found = {name: self._sum[name] / self._count[name] for name in self._sum if name.startswith("router/")}
        shares = {expert: [share for name, share in found.items() if name.endswith(f"/{expert}")] for expert in expert_names}
        return [expert for expert, own in shares.items() if own and max(own) < STARVED]

    def finish(self) -> dict[str, float]:
        """The means over what all ranks have seen; starts afresh."""
        sums, counts = self._sum, self._count
        if world_size() > 1:
            seen = gathered([(dict(sums), dict(counts))])
            names = sorted({name for own, _ in seen for name in own})
            sums, counts = ({name: sum(pair[k].get(name, 0.0) for pair in seen) for name in names} for k in (0, 1))
        figures = {name: sums[name] / counts[name] for name in sums}
        self.__init__()
        return figures
