"""What a stage minimises: model and batch in, loss terms out. One function per objective, chosen by name in the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from medplib.models.geometry import published_unpad_resize, valid_mask
from medplib.models.language import prefix_mask, states_before
from medplib.models.medplib import MedPLIB
from medplib.models.moe import load_balancing_loss, router_z_loss, task_routing_loss, tokens_of_experts
from medplib.models.precision import common_length
from medplib.ranks import summed
from medplib.tokens import IGNORE_LABEL
from medplib.training import losses, ranks
from medplib.training.losses import LossTerms, LossWeights
from medplib.types import Batch, GroundingOutput, ModelOutput


@dataclass(frozen=True)
class Outcome:
    """Loss terms of a batch, and the outputs behind them for who wants to watch more: of conversations all, else masks from names."""

    terms: LossTerms
    output: ModelOutput | None = None
    grounding: GroundingOutput | None = None


Objective = Callable[[MedPLIB, Batch, LossWeights], Outcome]

POINT_STEPS = 0.25
"""Promptable stage: every target is prompted by name in every step; in this share of the steps points and boxes come besides."""

POINT_SHARE = 0.4
"""In those steps, this share of the present targets is prompted by points and as many by a box. Few steps with many of them cost less time
than many steps with few, because a call of the decoder has a price of its own."""


def conversation(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stages I to IV: cross-entropy of the answers, mask losses of their targets, presence, distillation from name prompts, router."""
    # In training parts run even where a batch has nothing for them, so that all ranks take part in every exchange of gradients.
    with_masks = model.grounder is not None and weights.needs_masks and (len(batch.names) > 0 or model.every_part)
    with_masks = with_masks and (not model.training or weights.mask_share >= 1 or float(torch.rand(())) < weights.mask_share)
    ranks.diverge()
    out = model(batch, with_masks=with_masks)
    per_token = functional.cross_entropy(out.label_logits, out.label_ids, reduction="none")
    answer = _per_answer(per_token, batch.labels[:, 1:] != IGNORE_LABEL, batch.segments[:, 1:])
    decision, decided = _decision_loss(batch, out)
    terms = LossTerms(lm=per_token.mean(), answer=answer, decision=decision)
    if out.grounding is not None:
        terms = _with_masks(terms, out.grounding, batch, weights)
    size = torch.zeros((), device=batch.labels.device)
    if out.target_prompts is not None and weights.distill and model.names is not None:
        with torch.no_grad():
            wanted = model.names(batch.name_ids)
        size = wanted.square().sum()
        terms = replace(terms, distill=(out.target_prompts - wanted).square().sum() / size.clamp(min=1e-6))
    if out.router is not None and weights.router:
        tokens_LE = tokens_of_experts(out.router)
        terms = replace(
            terms, router=load_balancing_loss(out.router, summed(tokens_LE.flatten()).view_as(tokens_LE) if model.training else None)
        )
    if out.router is not None and weights.router_z:
        terms = replace(terms, router_z=router_z_loss(out.router))
    if out.router is not None and weights.router_task:
        wanted = _expert_of_token(batch, model.language.expert_of_task)
        terms = replace(terms, router_task=ranks.balanced_over_ranks(*task_routing_loss(out.router, wanted), together=model.training))
    if not model.training:  # what is only watched is added up by who watches
        return Outcome(terms, out, out.grounding)
    return Outcome(ranks.over_all_ranks(terms, ranks.count_items(batch, decided, size)), out, out.grounding)


def _expert_of_token(batch: Batch, expert_of_task: dict[str, int]) -> torch.Tensor:
    """(T,) for the real tokens: index of the expert that the task of their conversation names, -1 for none and for the shared prefix."""
    most = max(len(records) for records in batch.records)
    table = torch.full((len(batch.records), most + 1), -1, dtype=torch.int64)
    for row, records in enumerate(batch.records):
        for number, record in enumerate(records, 1):
            table[row, number] = expert_of_task.get(record.meta.task, -1)
    return table.to(batch.segments.device).gather(1, batch.segments)[batch.attention_mask]


def _per_answer(per_token: torch.Tensor, target: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
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


def _decision_loss(batch: Batch, out: ModelOutput) -> tuple[torch.Tensor | None, int]:
    """Cross-entropy of the one token that decides between `<SEG>` and a refusal, and the number of targets that it is the mean of.

    Without any it is None, in training 0: every rank must have the same terms.
    """
    nothing = out.label_logits.sum() * 0 if torch.is_grad_enabled() else None
    if not len(batch.names):
        return nothing, 0
    row_of = torch.full(batch.labels.shape, -1, device=batch.labels.device)
    target = batch.labels[:, 1:] != IGNORE_LABEL
    row_of[:, :-1][target] = torch.arange(len(out.label_ids), device=batch.labels.device)
    rows = row_of[batch.target_row, batch.target_position]
    rows = rows[rows >= 0]
    return (functional.cross_entropy(out.label_logits[rows], out.label_ids[rows]) if len(rows) else nothing), len(rows)


def _with_masks(terms: LossTerms, grounding: GroundingOutput, batch: Batch, weights: LossWeights) -> LossTerms:
    """Add mask losses over present targets and the presence loss over all."""
    present = batch.target_present
    if any(mask is not None for mask in batch.original_masks):
        terms = _published_mask_terms(terms, grounding, batch, weights)
    else:
        valid = valid_mask(batch.letterboxes, batch.target_masks.device)[batch.target_image]
        terms = _mask_terms(terms, _rows(grounding, present), batch.target_masks[present], valid[present], weights)
    if grounding.presence_logit is not None and weights.presence:
        terms = replace(terms, presence=losses.presence_bce(grounding.presence_logit, present))
    return terms


def _rows(grounding: GroundingOutput, rows: torch.Tensor) -> GroundingOutput:
    presence = None if grounding.presence_logit is None else grounding.presence_logit[rows]
    return GroundingOutput(grounding.low_res_logits[rows], grounding.mask_logits[rows], grounding.quality[rows], presence)


def _mask_terms(
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


def dense(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stage 0 of the grounder, first part: masks from names without the decoder's transformer, see `PixelGrounder.decode_directly`."""
    if not len(batch.names) and not model.every_part:
        return Outcome(LossTerms())
    features = model.grounder.encode(batch.sam_pixels, batch.letterboxes)
    masks = model.grounder.decode_directly(features, batch.target_image, model.names(batch.name_ids))
    return Outcome(_with_masks(LossTerms(), masks, batch, weights), grounding=masks)


def promptable(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stage 0 of the grounder: masks from names (where the model knows any), points and boxes (SAM's promptable task, arXiv 2304.02643).

    What is watched of a model that knows no names are masks of boxes, as in evaluations of SAM.
    """
    if not len(batch.names) and not model.every_part:
        return Outcome(LossTerms())
    features = model.grounder.encode(batch.sam_pixels, batch.letterboxes)
    terms, share_prompted, watched = LossTerms(), 1.0, None
    if model.names is not None:
        watched = model.grounder.decode(features, batch.target_image, model.names(batch.name_ids))
        terms, share_prompted = _with_masks(terms, watched, batch, weights), 2 * POINT_SHARE
        if float(torch.rand(())) >= POINT_STEPS:
            return Outcome(terms, grounding=watched)
    elif not model.training:
        watched = model.grounder.decode(features, batch.target_image, model.grounder.prompt_boxes(_boxes(batch.target_masks)))
    chosen = (torch.rand(len(batch.names), device=batch.target_present.device) < share_prompted) & batch.target_present
    index = chosen.nonzero().squeeze(1)
    valid = valid_mask(batch.letterboxes, batch.target_masks.device)[batch.target_image]
    halves = (index[: len(index) // 2], index[len(index) // 2 :])
    masks = batch.target_masks
    prompts = (_points(model, masks[halves[0]], valid[halves[0]]), model.grounder.prompt_boxes(_boxes(masks[halves[1]])))
    for half, prompt in zip(halves, prompts, strict=True):
        out = model.grounder.decode(features, batch.target_image[half], prompt)
        share = len(half) / max(int(batch.target_present.sum()), 1)
        terms = _mask_terms(terms, out, masks[half], valid[half], weights, share)
    return Outcome(terms, grounding=watched)


def _points(model: MedPLIB, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One random point inside each mask (N, S, S) and one outside, as sparse prompts."""
    inside = (masks >= 128) | (masks == masks.amax(dim=(1, 2), keepdim=True))
    outside = valid & (masks == 0)
    outside = torch.where(outside.any(dim=2).any(dim=1)[:, None, None], outside, valid)
    picks = torch.stack([torch.multinomial(where.flatten(1).float(), 1).squeeze(1) for where in (inside, outside)], dim=1)
    size = masks.shape[-1]
    points = torch.stack([picks % size, picks // size], dim=-1).float()
    labels = torch.tensor([1, 0], device=masks.device).expand(len(masks), 2)
    return model.grounder.prompt_points(points, labels)


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """Bounding boxes (N, 4) xyxy in pixels of masks (N, S, S), each side moved at random by up to a tenth of the box."""
    inside = masks > 0
    size = masks.shape[-1]
    grid = torch.arange(size, device=masks.device)
    low_high = []
    for axis in (1, 2):  # any over rows gives the columns (x), over columns the rows (y)
        along = inside.any(dim=axis)
        low_high.append((torch.where(along, grid, size).amin(dim=1), torch.where(along, grid, -1).amax(dim=1) + 1))
    (x0, x1), (y0, y1) = low_high
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    extent = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dim=1).float()
    return (boxes + (torch.rand_like(boxes) * 2 - 1) * 0.1 * extent).clamp(0, size)


def contrastive(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stage 0 of the vision and language side: captions against images, and the text read with the image."""
    features = model.vision(batch.vision_pixels, batch.letterboxes)
    terms = _text_terms(model, batch, features)
    captions, rows = _captions(batch)
    if len(rows) < 2 and weights.contrastive and model.every_part:  # every rank must have the same terms, of the same parts
        ids = torch.zeros_like(batch.input_ids[:1])
        state = _text_states(model, ids, torch.ones_like(ids, dtype=torch.bool))
        one = model.contrast.image_text_loss(features[:1], state, torch.ones(1, 1, dtype=torch.bool, device=ids.device))
        return Outcome(replace(terms, contrastive=features.sum() * 0 + one * 0) if model.training else terms)
    if len(rows) > 1 and weights.contrastive:
        ids, mask = captions
        duplicate = (ids[:, None] == ids[None]).all(dim=-1)
        terms = replace(terms, contrastive=model.contrast.image_text_loss(features[rows], _text_states(model, ids, mask), duplicate))
    return Outcome(terms)


def _captions(batch: Batch) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Token ids (K, Lc) and mask of the answers of caption conversations, and the image of each (single-image samples)."""
    texts, rows = [], []
    for row, records in enumerate(batch.records):
        for number, record in enumerate(records, 1):
            if record.meta.task == "caption":
                here = (batch.segments[row] == number) & (batch.labels[row] != IGNORE_LABEL)
                texts.append(batch.labels[row][here])
                rows.append(row)
    device = batch.input_ids.device
    if not texts:
        return (batch.input_ids[:0], batch.attention_mask[:0]), torch.zeros(0, dtype=torch.int64, device=device)
    mask = pad_sequence([torch.ones_like(t, dtype=torch.bool) for t in texts], batch_first=True)
    ids, missing = pad_sequence(texts, batch_first=True), common_length(mask.shape[1]) - mask.shape[1]
    return (functional.pad(ids, (0, missing)), functional.pad(mask, (0, missing))), torch.tensor(rows, device=device)


def _text_states(model: MedPLIB, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden state of right-padded texts (K, Lt) -> (K, D), at their last token."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    visible = prefix_mask(mask, torch.zeros_like(ids))
    hidden = model.language.hidden(model.language.embed(ids), mask=visible, positions=positions, token_mask=mask)
    return hidden[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


def _text_terms(model: MedPLIB, batch: Batch, features: torch.Tensor) -> LossTerms:
    """Next-token losses of whole conversations behind their image: `lm` over questions and answers, `answer` over answers.

    All words teach a language model from scratch the language; answers weigh extra because they are what depends on the image.
    """
    hidden = model.hidden(batch, features)
    following = batch.input_ids[:, 1:]
    known = batch.attention_mask[:, 1:] & (following >= 0) & (batch.segments[:, 1:] > 0) & (batch.segments[:, :-1] == batch.segments[:, 1:])
    loss = functional.cross_entropy(model.language.logits(states_before(hidden, known)), following[known], reduction="none")
    target = batch.labels[:, 1:] != IGNORE_LABEL
    return LossTerms(lm=loss.mean(), answer=_per_answer(loss[target[known]], target & known, batch.segments[:, 1:]))


OBJECTIVES: dict[str, Objective] = {"conversation": conversation, "dense": dense, "promptable": promptable, "contrastive": contrastive}
