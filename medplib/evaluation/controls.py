"""Controls: experiments in which a model that ignores the text, or the image, must fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import Loaded
from medplib.data.mosaic import mosaic
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import NamedFigure, Rule
from medplib.evaluation.protocols import STRICT
from medplib.evaluation.segmentation import dice, overlap
from medplib.inference.predictor import Predictor
from medplib.ranks import gathered, rank, world_size
from medplib.types import Record


def mosaic_pairs(records: Sequence[Record], *, count: int, seed: int) -> list[tuple[Record, Record]]:
    """Pairs of single-target questions about different images that ask for different, known-to-be-elsewhere-absent things.

    Only structures of at least one target whose name the other image is known not to show make a pair.
    """
    usable = [r for r in records if len(r.targets) == 1 and r.targets[0].mask is not None and r.meta.present]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(usable))
    pairs: list[tuple[Record, Record]] = []
    for i in order:
        if len(pairs) == count:
            break
        first = usable[i]
        for j in rng.permutation(len(usable))[:50]:
            second = usable[j]
            names = first.targets[0].name, second.targets[0].name
            if names[0] not in second.meta.present and names[1] not in first.meta.present and first.images != second.images:
                pairs.append((first, second))
                break
    return pairs


def mosaic_control(
    predictor: Predictor, records: Sequence[Record], bootstrap: Bootstrap, *, count: int = 100, batch_size: int = 16, seed: int = 0
) -> list[NamedFigure]:
    """Side by side, asked for either: Dice of the asked structure, and IoU of the two answers (1 = text ignored, 0 = fully selective).

    A missing `<SEG>` is an empty mask: Dice 0; the overlap of two answers of which one is empty is 0, so Dice and overlap belong together.
    """
    cache, scored = FileCache(64), []
    pairs, at_once = mosaic_pairs(records, count=count, seed=seed), max(1, batch_size // 2)
    for start in range(at_once * rank(), len(pairs), at_once * world_size()):
        questions = [
            Loaded(joined.images, (record,), (masks,), ((),))
            for first, second in pairs[start : start + at_once]
            for joined in (mosaic(load_records((first,), cache), load_records((second,), cache)),)
            for record, masks in zip(joined.records, joined.target_masks, strict=True)
        ]
        answers = [
            _binary(p.masks[0].probability) if p.masks else np.zeros(q.images[0].shape[:2], bool)
            for p, q in zip(predictor.answer(questions), questions, strict=True)
        ]
        scores = [dice(overlap(a, q.target_masks[0][0]), empty=0.0) for a, q in zip(answers, questions, strict=True)]
        for index in range(0, len(questions), 2):
            counts = overlap(answers[index], answers[index + 1])
            both = counts.intersection / counts.union if counts.union else 0.0
            scored.append((start + index // 2, both, float(np.mean(scores[index : index + 2]))))
    _, overlaps, dices = zip(*sorted(gathered(scored)), strict=True) if pairs else ((), (), ())
    clusters = [(first.meta.source, first.meta.patient or first.id) for first, _ in pairs]
    policy = f"probability > {STRICT.threshold}; missing <SEG> = empty mask"
    rule = Rule("IoU of the two answers for one pair of images", "mosaic", policy)
    dice_rule = Rule("mean Dice of the two asked structures of one pair of images", "mosaic", policy)
    return [
        NamedFigure("controls.mosaic_overlap", rule.mean(overlaps, clusters, bootstrap)),
        NamedFigure("controls.mosaic_dice", dice_rule.mean(dices, clusters, bootstrap)),
    ]


def shuffled_questions(records: Sequence[Record], *, seed: int) -> list[Record]:
    """Every present single-target question replaced by that of another structure visible in the same image; the mask stays.

    A model that reads the text now scores low against the old mask. Images of which only one structure is asked for are left out.
    """
    rng = np.random.default_rng(seed)
    by_image: dict[tuple, list[Record]] = {}
    for record in records:
        if len(record.targets) == 1 and record.targets[0].mask is not None:
            by_image.setdefault(record.images, []).append(record)
    out = []
    for group in by_image.values():
        for record in group:
            others = [o for o in group if o.targets[0].name != record.targets[0].name]
            if others:
                asked = others[int(rng.integers(len(others)))]
                out.append(replace(record, id=f"{record.id}~shuffled", turns=(asked.turns[0], *record.turns[1:])))
    return out


def _binary(probability: np.ndarray) -> np.ndarray:
    return probability > STRICT.threshold
