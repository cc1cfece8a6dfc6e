"""Several ranks as if they were one: losses that mean over everything that all ranks hold, random numbers that agree where they must.

Gradients are averaged over ranks. A mean over what one rank holds would then weigh an answer by the company it happens to be in; so each
rank scales its mean by its share of all items, times the number of ranks, and the average over ranks is the mean over all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import distributed

from medplib.ranks import summed, world_size
from medplib.tokens import IGNORE_LABEL
from medplib.training.losses import LossTerms
from medplib.types import Batch


def diverge() -> None:
    """From here on every rank draws its own random numbers (dropout); before, all draw the same (what a step computes at all)."""
    if world_size() > 1:
        torch.manual_seed(torch.initial_seed() + 104_729 * distributed.get_rank())


TERMS = ("lm", "answer", "decision", "mask_bce", "mask_dice", "mask_focal", "mask_iou", "presence", "distill", "router", "router_z")
"""Loss terms that are means over items; the others are averaged over ranks as they are (`router_task` is shared out before)."""


def count_items(batch: Batch, decided: int, prompt_size: torch.Tensor) -> torch.Tensor:
    """How many items stand behind each of TERMS, (len(TERMS),): answer tokens, answers, decided targets, present targets, all targets,
    `prompt_size`, routed tokens.

    Args:
        batch: of conversations.
        decided: targets whose deciding token is supervised.
        prompt_size: what the error of the prompts is divided by.
    """
    target = batch.labels[:, 1:] != IGNORE_LABEL
    rows = target.nonzero()[:, 0]
    answers = torch.unique(torch.stack([rows, batch.segments[:, 1:][target]]), dim=1).shape[1]
    present = batch.target_present.sum()
    counts = (target.sum(), answers, decided, *[present] * 4, len(batch.names), prompt_size, *[batch.attention_mask.sum()] * 2)
    return torch.stack([torch.as_tensor(count, dtype=torch.float32, device=target.device) for count in counts])


def over_all_ranks(terms: LossTerms, counts: torch.Tensor) -> LossTerms:
    """Scale TERMS so that their average over ranks is the mean over the items of all ranks; one collective, none with one rank."""
    ranks = world_size()
    if ranks == 1:
        return terms
    everyone = summed(counts)
    share = counts * ranks / everyone.clamp(min=1e-6)
    return replace(terms, **{n: share[i] * value for i, n in enumerate(TERMS) if (value := getattr(terms, n)) is not None})


def balanced_over_ranks(sums_E: torch.Tensor, counts_E: torch.Tensor, *, together: bool = True) -> torch.Tensor:
    """Mean over the items of each of E kinds, then over the kinds that there are, as this rank's part of that over all ranks.

    Args:
        sums_E: sum of the losses of each kind.
        counts_E: number of items of each kind.
        together: False = of this rank alone.
    """
    everyone_E, ranks = counts_E.float(), world_size() if together else 1
    if ranks > 1:
        everyone_E = summed(everyone_E)
    kinds = (everyone_E > 0).sum().clamp(min=1)
    return (sums_E / everyone_E.clamp(min=1)).sum() / kinds * ranks
