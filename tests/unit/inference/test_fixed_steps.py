"""States of steps over buffers of fixed length are those over a growing cache, captured or not."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from medplib.inference.prefill import Prefilled
from medplib.inference.steps import CapturedSteps, GrowingSteps
from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask
from medplib.models.moe import MoEConfig

WIDTH, ROWS, PROMPT, WORDS = 32, 3, 9, 5
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def _read(language: LanguageModel, device: str, seed: int) -> tuple[Prefilled, torch.Tensor]:
    """Prompts of several lengths, padded on the left, and the position of their last word (B, 1)."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(ROWS, PROMPT, WIDTH, generator=generator).to(device)
    mask = torch.arange(PROMPT, device=device) >= torch.randint(0, 5, (ROWS, 1), generator=generator).to(device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=language.model.config)
    hidden = language.hidden(embeds, mask=prefix_mask(mask, torch.zeros_like(positions)), positions=positions, token_mask=mask, cache=cache)
    return Prefilled(hidden[:, -1], cache, mask), positions[:, -1:]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("moe", [None, MoEConfig(experts=("a", "b")), MoEConfig(experts=("a", "b", "c"), top_k=2, gate="probability")])
@torch.no_grad()
def test_states_over_several_batches(device: str, moe: MoEConfig | None) -> None:
    torch.manual_seed(0)
    language = LanguageModel(LanguageConfig(hidden_size=WIDTH, layers=2, heads=2, mlp_size=48, vocab_size=40, moe=moe)).to(device).eval()
    fixed = CapturedSteps()
    kept = []
    for seed in range(3):
        words = torch.randn(WORDS, ROWS, 1, WIDTH, generator=torch.Generator().manual_seed(seed)).to(device)
        states = []
        for steps in (fixed, GrowingSteps()):
            read, position = _read(language, device, seed)
            advance = steps.begin(language, read, WORDS)
            live = torch.ones(ROWS, dtype=torch.bool, device=device)
            said = []
            for step, word in enumerate(words):
                live = live & (torch.arange(ROWS, device=device) >= min(step, ROWS - 1))  # all rows but the last end, one by one
                said.append(advance(word, position + step + 1, live))
                said[-1] = tuple(t[live] for t in said[-1])
            states.append(said)
        kept.append(fixed._step)
        for found, wanted in zip(*states, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    assert kept[0] is kept[1] is kept[2]
