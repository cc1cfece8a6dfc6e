"""The prompt's pass through the language model; what several questions share (system words and images) is run once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from medplib.models.language import LanguageModel, prefix_mask
from medplib.types import Batch


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has been read: state that predicts the first answer token (B, D), the cache, and its keys that count (B, K) bool."""

    state: torch.Tensor
    cache: DynamicCache
    seen: torch.Tensor


def prefill(language: LanguageModel, batch: Batch, embeds_BLD: torch.Tensor, leader: torch.Tensor | None = None) -> Prefilled:
    """Read the prompts of a left-padded batch.

    Args:
        language: the model.
        batch: open-ended, one conversation per row; segment 0 is what a row may share with others.
        embeds_BLD: inputs of its tokens.
        leader: (B,) index of the row whose segment 0 is equal to this row's, images included; None = of none is known.
    """
    cache = DynamicCache(config=language.model.config)
    shared_BL = (batch.segments == 0) & batch.attention_mask
    lengths = shared_BL.sum(dim=1)
    if (
        leader is None
        or int(lengths.min()) < int(lengths.max())
        or not int(lengths.min())
        or len(leaders := leader.unique()) == len(leader)
    ):
        mask = prefix_mask(batch.attention_mask, batch.segments)
        hidden = language.hidden(embeds_BLD, mask=mask, positions=batch.positions, token_mask=batch.attention_mask, cache=cache)
        return Prefilled(hidden[:, -1], cache, batch.attention_mask)
    length = int(lengths[0])
    prefix = embeds_BLD[shared_BL].unflatten(0, (-1, length))[leaders]
    whole = torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device)
    places = torch.arange(length, device=prefix.device).expand(len(prefix), -1)
    mask = prefix_mask(whole, torch.zeros_like(places))
    language.hidden(prefix, mask=mask, positions=places, token_mask=whole, cache=cache, unmasked=length)
    cache.batch_select_indices(torch.searchsorted(leaders, leader))
    # Questions end at the last column. What of a shorter row's own prefix reaches into the columns of the longest question is hidden.
    own_BL = batch.attention_mask & ~shared_BL
    longest = int(own_BL.sum(dim=1).max())
    own_BS = own_BL[:, -longest:]
    before_BP = torch.ones(len(own_BS), length, dtype=torch.bool, device=own_BS.device)
    within = prefix_mask(own_BS, torch.zeros_like(own_BS, dtype=torch.int64))
    mask = torch.cat([before_BP[:, None, None].expand(-1, -1, longest, -1), within], dim=-1)
    hidden = language.hidden(embeds_BLD[:, -longest:], mask=mask, positions=batch.positions[:, -longest:], token_mask=own_BS, cache=cache)
    return Prefilled(hidden[:, -1], cache, torch.cat([before_BP, own_BS], dim=1))
