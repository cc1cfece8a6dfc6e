"""Collects a few pictures while an evaluation runs: target and answer side by side."""

from __future__ import annotations

import numpy as np

from medplib.data.encode import Loaded
from medplib.evaluation.protocols import STRICT
from medplib.evaluation.report import Gallery, Picture
from medplib.evaluation.segmentation import dice, overlap
from medplib.imaging.overlay import overlay_masks
from medplib.inference.predictor import Prediction
from medplib.ranks import gathered


class GalleryViewer:
    """Keeps up to `per_group` grounding pictures per modality and up to `answers` text answers."""

    def __init__(self, *, per_group: int = 3, answers: int = 12) -> None:
        self.per_group, self.answers = per_group, answers
        self._groups: dict[str, list[tuple[int, Picture]]] = {}
        self._texts: list[tuple[int, Picture]] = []

    def __call__(self, place: int, loaded: Loaded, prediction: Prediction) -> None:
        """Look at the answer number `place`; every few are kept, so that the pictures are not chosen by quality."""
        record = loaded.records[0]
        question = record.turns[0].text.replace("<image>", "").strip()
        if record.meta.task != "grounding":
            if place % 37 == 0 and len(self._texts) < self.answers:
                regions = [("region", mask) for mask in loaded.region_masks[0]]
                caption = f"{question} Answer: {prediction.text} (reference: {record.turns[-1].text})"
                self._texts.append((place, Picture(overlay_masks(loaded.images[0], regions), caption)))
            return
        group = self._groups.setdefault(record.meta.modality or record.meta.source, [])
        if len(group) < self.per_group and place % 5 == 4:
            group.append((place, self._grounding(loaded, prediction, question)))

    def _grounding(self, loaded: Loaded, prediction: Prediction, question: str) -> Picture:
        record, image = loaded.records[0], loaded.images[0]
        truth = [(t.name, m) for t, m in zip(record.targets, loaded.target_masks[0], strict=True) if m is not None]
        answer = [(m.name, m.probability > STRICT.threshold) for m in prediction.masks]
        panels = [overlay_masks(image, truth), overlay_masks(image, answer)]
        height = max(p.shape[0] for p in panels)
        panels = [np.pad(p, ((0, height - p.shape[0]), (0, 6), (0, 0)), constant_values=255) for p in panels]
        score = ""
        if truth and answer:
            score = f" Dice {dice(overlap(answer[0][1], truth[0][1]), empty=0.0):.2f}."
        presence = "" if prediction.presence is None else f" Presence {prediction.presence:.2f}."
        said = prediction.text.replace("<SEG>", "[mask]")
        return Picture(np.concatenate(panels, axis=1), f"{question} Left: target; right: answer “{said}”.{score}{presence}")

    def galleries(self) -> tuple[Gallery, ...]:
        """One gallery per modality, then the text answers; every rank must ask, and each gets what all of them have seen."""
        note = "Every fifth question in order of evaluation, not chosen by quality."
        groups: dict[str, list[tuple[int, Picture]]] = {}
        for name, kept in gathered(list(self._groups.items())):
            groups.setdefault(name, []).extend(kept)
        found = [Gallery(name, _first(kept, self.per_group), note) for name, kept in sorted(groups.items()) if kept]
        texts = _first(gathered(self._texts), self.answers)
        return (*found, Gallery("Questions", texts)) if texts else tuple(found)


def _first(kept: list[tuple[int, Picture]], count: int) -> tuple[Picture, ...]:
    return tuple(picture for _, picture in sorted(kept, key=lambda item: item[0])[:count])
