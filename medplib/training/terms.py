"""What objectives are made of: what they give, and the loss terms that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from medplib.models.geometry import published_unpad_resize, valid_mask
from medplib.models.medplib import MedPLIB
from medplib.training import losses
from medplib.training.losses import LossTerms, LossWeights
from medplib.types import Batch, GroundingOutput, ModelOutput


@dataclass(frozen=True)
class Outcome:
    """Loss terms of a batch, and the outputs behind them for who wants to watch more: of conversations all, else masks from names.

    `counts` says how many items each of `ranks.TERMS` is the mean of.
    """

    terms: LossTerms
    counts: torch.Tensor
    output: ModelOutput | None = None
    grounding: GroundingOutput | None = None


Objective = Callable[[MedPLIB, Batch, LossWeights], Outcome]


def per_answer(per_token: torch.Tensor, target: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Mean over conversations of their mean loss per answer token.

    Args:
        per_token: (T,) losses of the T supervised tokens, in row-major order.
        target: (B, L) bool, where they are.
        segments: (B, L) conversation of each token inside its row.
    """
    rows = target.nonzero()[:, 0]
    _, group = torch.unique(torch.stack([rows, segments[target]]), dim=1, return_inverse=True)
    count = torch.bincount(group).to(per_token.dtype)
    return (torch.zeros_like(count).index_add(0, group, per_token) / count).mean()


def with_mask_terms(terms: LossTerms, grounding: GroundingOutput, batch: Batch, weights: LossWeights) -> LossTerms:
    """Add mask losses over present targets and the presence loss over all."""
    present = batch.target_present
    if any(mask is not None for mask in batch.original_masks):
        terms = _published_mask_terms(terms, grounding, batch, weights)
    else:
        valid = valid_mask(batch.letterboxes, batch.target_masks.device)[batch.target_image]
        terms = add_mask_terms(terms, _rows(grounding, present), batch.target_masks[present], valid[present], weights)
    if grounding.presence_logit is not None and weights.presence:
        terms = replace(terms, presence=losses.presence_bce(grounding.presence_logit, present))
    return terms


def _rows(grounding: GroundingOutput, rows: torch.Tensor) -> GroundingOutput:
    presence = None if grounding.presence_logit is None else grounding.presence_logit[rows]
    return GroundingOutput(grounding.low_res_logits[rows], grounding.mask_logits[rows], grounding.quality[rows], presence)


def add_mask_terms(
    terms: LossTerms, grounding: GroundingOutput, masks: torch.Tensor, valid: torch.Tensor, weights: LossWeights, share: float = 1.0
) -> LossTerms:
    """Add `share` times the weighted-in mask losses to `terms`."""
    logits, target = grounding.mask_logits, masks.float().div_(255)
    sums = losses.mask_sums(logits, target, valid)
    functions = {
        "mask_bce": lambda: losses.mask_bce(sums),
        "mask_dice": lambda: losses.mask_dice(sums),
        "mask_focal": lambda: losses.mask_focal(logits, target, valid),
        "mask_iou": lambda: losses.mask_iou(sums, grounding.quality),
    }
    for name, function in functions.items():
        if getattr(weights, name):
            value, before = share * function(), getattr(terms, name)
            terms = replace(terms, **{name: value if before is None else before + value})
    return terms


def _published_mask_terms(terms: LossTerms, grounding: GroundingOutput, batch: Batch, weights: LossWeights) -> LossTerms:
    """Mask losses as published, for models built with `legacy`: at original size, after the published un-padding, quality and mask both
    moved by the IoU term.
    """
    kept = [index for index, mask in enumerate(batch.original_masks) if mask is not None]
    logits = published_unpad_resize(grounding.low_res_logits[kept], batch.letterboxes, batch.target_image[kept])
    values: dict[str, list[torch.Tensor]] = {}
    for index, logits_HW in zip(kept, logits, strict=True):
        target_HW = batch.original_masks[index]
        one = (logits_HW[None], target_HW[None], torch.ones_like(target_HW)[None])
        sums = losses.mask_sums(*one)
        for name, value in (
            ("mask_bce", losses.mask_bce(sums)),
            ("mask_dice", losses.mask_dice(sums)),
            ("mask_focal", losses.mask_focal(*one)),
            ("mask_iou", losses.mask_iou(sums, grounding.quality[index : index + 1], detach_masks=False)),
        ):
            values.setdefault(name, []).append(value)
    return replace(terms, **{name: torch.stack(found).mean() for name, found in values.items() if getattr(weights, name)})
