"""Batched greedy decoding in a single pass: words, and the states that predict `<SEG>`, without running the prompt twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from medplib.inference.prefill import prefill
from medplib.inference.steps import GrowingSteps, Steps
from medplib.models.medplib import MedPLIB
from medplib.types import Batch


@dataclass(frozen=True)
class Generated:
    """Answers of B prompts.

    Args:
        ids: per row, the new token ids up to and without the end token.
        seg_row: (K,) row of each `<SEG>`, in order of row and then of appearance.
        seg_states: (K, D) states that predicted them.
        first_state: (B, D) state that predicted the first answer token.
        first_logprobs: (B, V) log-probabilities of the first answer token.
        complete: per row, whether the end token came before the limit.
    """

    ids: list[list[int]]
    seg_row: torch.Tensor
    seg_states: torch.Tensor
    first_state: torch.Tensor
    first_logprobs: torch.Tensor
    complete: list[bool]


Decide = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(step, states (B, D), log-probabilities (B, V), rows (B,) bool that still speak) -> the token each row says next (B,)."""


@torch.no_grad()
def generate(
    model: MedPLIB,
    batch: Batch,
    *,
    eos_id: int,
    seg_id: int,
    max_new_tokens: int = 64,
    decide: Decide | None = None,
    features: torch.Tensor | None = None,
    leader: torch.Tensor | None = None,
    steps: Steps | None = None,
) -> Generated:
    """Greedy answers to a left-padded, open-ended batch.

    Args:
        model: in evaluation mode.
        batch: collated with `pad_left=True` from samples encoded with `open_ended=True`.
        eos_id: id of the end token.
        seg_id: id of `<SEG>`.
        max_new_tokens: limit per answer.
        decide: chooses every token; None takes the most likely.
        features: of the vision encoder for the images of the batch, where they are known already.
        leader: (B,) row with the same images in front, so that the shared prefix is run once (see `prefill`); None = each runs its own.
        steps: how words are decoded behind the prompt (see `steps_for`); None = over a cache that grows.
    """
    device = batch.input_ids.device
    features = model.vision(batch.vision_pixels, batch.letterboxes) if features is None else features
    shown = model.shown(batch, features)
    recent = batch.input_ids[:, -model.words.longest :] if model.words is not None else batch.input_ids[:, -1:]
    read = prefill(model.language, batch, model.embed(batch, features, shown), leader)
    more = max_new_tokens > 1  # or else what was read of the prompt is not needed any more
    advance = (steps or GrowingSteps()).begin(model.language, read, max_new_tokens) if more else None
    state = first_state = read.state
    logprobs = first_logprobs = model.language.logits(state).log_softmax(dim=-1)
    positions = batch.positions[:, -1:]
    rows = len(state)
    ids: list[list[int]] = [[] for _ in range(rows)]
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    segs: list[tuple[int, torch.Tensor]] = []
    for step in range(max_new_tokens):
        following = logprobs.argmax(dim=-1) if decide is None else decide(step, state, logprobs, ~done)
        done = done | (following == eos_id)
        silent = done.tolist()
        for row, token in enumerate(following.tolist()):  # all at once, because an accelerator is waited for at every question
            if not silent[row]:
                ids[row].append(token)
                if token == seg_id:
                    segs.append((row, state[row]))
        if all(silent) or step == max_new_tokens - 1:
            break
        positions = positions + 1
        recent = torch.cat([recent[:, 1:], following[:, None]], dim=1)  # a name may span several tokens
        state, logprobs = advance(model.embed_text(recent, shown)[:, -1:], positions, ~done)
    order = sorted(range(len(segs)), key=lambda i: segs[i][0])  # stable: by row, then by time
    return Generated(
        ids=ids,
        seg_row=torch.tensor([segs[i][0] for i in order], dtype=torch.int64, device=device),
        seg_states=torch.stack([segs[i][1] for i in order]) if segs else first_state[:0],
        first_state=first_state,
        first_logprobs=first_logprobs,
        complete=done.tolist(),
    )
