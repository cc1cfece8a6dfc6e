"""Objectives of stage 0, which makes the encoders that the published model takes from SAM and CLIP."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from medplib.models.contrast import image_text_loss
from medplib.models.geometry import valid_mask
from medplib.models.language import prefix_mask, states_before
from medplib.models.medplib import MedPLIB
from medplib.models.precision import common_length
from medplib.tokens import IGNORE_LABEL
from medplib.training import ranks
from medplib.training.losses import LossTerms, LossWeights
from medplib.training.terms import Outcome, add_mask_terms, per_answer, with_mask_terms
from medplib.types import Batch

POINT_STEPS = 0.25
"""Promptable stage: every target is prompted by name in every step; in this share of the steps points and boxes come besides."""

POINT_SHARE = 0.4
"""In those steps, this share of the present targets is prompted by points and as many by a box. Few steps with many of them cost less time
than many steps with few, because a call of the decoder has a price of its own."""


def dense(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stage 0 of the grounder, first part: masks from names without the decoder's transformer, see `PixelGrounder.decode_directly`."""
    if not len(batch.names) and not model.every_part:
        return Outcome(LossTerms(), ranks.count_items(batch))
    features = model.grounder.encode(batch.sam_pixels, batch.letterboxes)
    masks = model.grounder.decode_directly(features, batch.target_image, model.names(batch.name_ids))
    return Outcome(with_mask_terms(LossTerms(), masks, batch, weights), ranks.count_items(batch), grounding=masks)


def promptable(model: MedPLIB, batch: Batch, weights: LossWeights) -> Outcome:
    """Stage 0 of the grounder: masks from names (where the model knows any), points and boxes (SAM's promptable task, arXiv 2304.02643).

    What is watched of a model that knows no names are masks of boxes, as in evaluations of SAM.
    """
    if not len(batch.names) and not model.every_part:
        return Outcome(LossTerms(), ranks.count_items(batch))
    with_prompts = model.names is None or float(torch.rand(())) < POINT_STEPS
    ranks.diverge()
    features = model.grounder.encode(batch.sam_pixels, batch.letterboxes)
    terms, share_prompted, watched = LossTerms(), 1.0, None
    if model.names is not None:
        watched = model.grounder.decode(features, batch.target_image, model.names(batch.name_ids))
        terms, share_prompted = with_mask_terms(terms, watched, batch, weights), 2 * POINT_SHARE
        if not with_prompts:
            return Outcome(terms, ranks.count_items(batch), grounding=watched)
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
        terms = add_mask_terms(terms, out, masks[half], valid[half], weights, share)
    return Outcome(terms, ranks.count_items(batch), grounding=watched)


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
    """Stage 0 of the vision and language side: captions against the images of all ranks, and the text read with the image."""
    features = model.vision(batch.vision_pixels, batch.letterboxes)
    terms, tokens = _text_terms(model, batch, features)
    if weights.contrastive:
        terms = replace(terms, contrastive=_caption_loss(model, batch, features))
    return Outcome(terms, ranks.count_items(batch, tokens=tokens))


def _caption_loss(model: MedPLIB, batch: Batch, features: torch.Tensor) -> torch.Tensor | None:
    """Of the captions of all ranks, the same on each of them; out of training of this rank's alone, and None with fewer than two."""
    ids, mask, rows = _captions(batch)
    if (count := len(rows)) < 2 and not model.every_part:
        return None
    if not count:  # every rank must have the same terms, of the same parts
        ids, rows = torch.zeros_like(batch.input_ids[:1]), torch.zeros_like(batch.input_ids[0, :1])
        mask = torch.ones_like(ids, dtype=torch.bool)
    image, words = model.contrast(features[rows], _text_states(model, ids, mask))
    if not model.training:
        return image_text_loss(image, words, _equal(list(ids))) if count > 1 else None
    images, texts, captions = (ranks.of_all_ranks(own) for own in (image[:count], words[:count], ids[:count].flatten()))
    if not sum(map(len, images)):
        return image_text_loss(image, words, _equal(list(ids)))  # 0
    every = [row for flat, part in zip(captions, images, strict=True) if len(part) for row in flat.view(len(part), -1)]
    loss = image_text_loss(torch.cat(images), torch.cat(texts), _equal(every))
    return loss if count else loss + 0 * (image.sum() + words.sum())


def _equal(ids: list[torch.Tensor]) -> torch.Tensor:
    """Which of I captions, each ids with zeros behind them, are the same: (I, I) bool."""
    ids_IL = pad_sequence(ids, batch_first=True)
    return (ids_IL[:, None] == ids_IL[None]).all(dim=-1)


def _captions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
        return batch.input_ids[:0], batch.attention_mask[:0], torch.zeros(0, dtype=torch.int64, device=device)
    mask = pad_sequence([torch.ones_like(t, dtype=torch.bool) for t in texts], batch_first=True)
    ids, missing = pad_sequence(texts, batch_first=True), common_length(mask.shape[1]) - mask.shape[1]
    return functional.pad(ids, (0, missing)), functional.pad(mask, (0, missing)), torch.tensor(rows, device=device)


def _text_states(model: MedPLIB, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Last hidden state of right-padded texts (K, Lt) -> (K, D), at their last token."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    visible = prefix_mask(mask, torch.zeros_like(ids))
    hidden = model.language.hidden(model.language.embed(ids), mask=visible, positions=positions, token_mask=mask)
    return hidden[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


def _text_terms(model: MedPLIB, batch: Batch, features: torch.Tensor) -> tuple[LossTerms, torch.Tensor]:
    """Next-token losses of whole conversations behind their image: `lm` over questions and answers, `answer` over answers; number of words.

    All words teach a language model from scratch the language; answers weigh extra because they are what depends on the image.
    """
    hidden = model.hidden(batch, features)
    following = batch.input_ids[:, 1:]
    known = batch.attention_mask[:, 1:] & (following >= 0) & (batch.segments[:, 1:] > 0) & (batch.segments[:, :-1] == batch.segments[:, 1:])
    loss = functional.cross_entropy(model.language.logits(states_before(hidden, known)), following[known], reduction="none")
    target = batch.labels[:, 1:] != IGNORE_LABEL
    answer = per_answer(loss[target[known]], target & known, batch.segments[:, 1:])
    return LossTerms(lm=loss.mean(), answer=answer), known.sum()
