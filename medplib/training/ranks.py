"""Several ranks as if they were one: losses that mean over everything that all ranks hold, random numbers that agree where they must.

Gradients are averaged over ranks. A mean over what one rank holds would then weigh an answer by the company it happens to be in; so each
rank scales its mean by its share of all items, times the number of ranks, and the average over ranks is the mean over all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import distributed

from medplib.ranks import gathered_rows, rank, summed, world_size
from medplib.tokens import IGNORE_LABEL
from medplib.training.losses import LossTerms
from medplib.types import Batch


def diverge() -> None:
    """From here on every rank draws its own random numbers (dropout); before, all draw the same (what a step computes at all)."""
    if world_size() > 1:
        torch.manual_seed(torch.initial_seed() + 104_729 * distributed.get_rank())


TERMS = ("lm", "answer", "decision", "mask_bce", "mask_dice", "mask_focal", "mask_iou", "presence", "distill", "router", "router_z")
"""Loss terms that are means over items. `router_task` is shared out and `contrastive` computed over all ranks before."""


def count_items(
    batch: Batch, *, tokens: torch.Tensor | None = None, decided: int = 0, prompt_size: torch.Tensor | None = None
) -> torch.Tensor:
    """How many items stand behind each of TERMS, (len(TERMS),): tokens of text, answers, decided targets, present targets, all targets,
    `prompt_size`, routed tokens.

    Args:
        batch: what the terms are of.
        tokens: whose loss `lm` is; None = those of answers.
        decided: targets whose deciding token is supervised.
        prompt_size: what the error of the prompts is divided by.
    """
    target = batch.labels[:, 1:] != IGNORE_LABEL
    rows = target.nonzero()[:, 0]
    answers = torch.unique(torch.stack([rows, batch.segments[:, 1:][target]]), dim=1).shape[1]
    present, read = batch.target_present.sum(), target.sum() if tokens is None else tokens
    prompts = 0 if prompt_size is None else prompt_size
    counts = (read, answers, decided, *[present] * 4, len(batch.names), prompts, *[batch.attention_mask.sum()] * 2)
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


def of_all_ranks(own: torch.Tensor) -> list[torch.Tensor]:
    """Rows (n, ...) of every rank, in the order of the ranks; those of this one carry its gradient times the number of ranks.

    A loss of all rows, which every rank computes, then gives after averaging over ranks the gradient that one process with all rows has,
    and no gradient travels: each rank has the derivatives by its own rows.
    """
    parts = gathered_rows(own.detach())
    if own.requires_grad:
        parts[rank()] = own.view_as(own)
        parts[rank()].register_hook(lambda gradient: gradient * len(parts))
    return parts
