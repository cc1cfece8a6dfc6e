"""The first tokens without a mask see what the mask says, for every decoder and every layout of a batch."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoConfig

from medplib.models import attention
from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
DECODERS = {
    "llama": {},
    "grouped keys": {"num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
}
ROWS = ([6, 3, 2], [4, 5, 1], [9, 0, 0])
"""Lengths of prefix, first and second conversation of each row."""


def _language(name: str) -> LanguageModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": "llama", **SIZES, **DECODERS[name]}).to_diff_dict()
    return LanguageModel(LanguageConfig(vocab_size=60, hf_config=config))


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, mask, positions, and which tokens are real."""
    segments = torch.nn.utils.rnn.pad_sequence(
        [torch.arange(3).repeat_interleave(torch.tensor(lengths)) for lengths in ROWS], batch_first=True
    )
    real = torch.arange(segments.shape[1]) < torch.tensor(ROWS).sum(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(*segments.shape, 32, generator=generator, requires_grad=True)
    return embeds, prefix_mask(real, segments), torch.arange(segments.shape[1]).expand_as(segments), real


@pytest.fixture(autouse=True)
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches here are short."""
    monkeypatch.setattr(attention, "SHORTEST", 1)


@pytest.mark.parametrize("unmasked", [1, 4, 9])
@pytest.mark.parametrize("name", DECODERS)
def test_same_states_and_gradients(name: str, unmasked: int) -> None:
    language = _language(name)
    found = []
    for count in (0, unmasked):
        embeds, mask, positions, real = _batch()
        states = language.hidden(embeds, mask=mask, positions=positions, unmasked=count)
        states[real].square().sum().backward()
        found.append((states[real].detach(), embeds.grad))
    for masked, split in zip(*found, strict=True):
        torch.testing.assert_close(split, masked, rtol=1e-5, atol=5e-6)  # other rounding, by up to 1.2e-6 on some CPUs


def test_nothing_needs_a_mask() -> None:
    language, (embeds, _, positions, _) = _language("llama"), _batch()
    causal = prefix_mask(torch.ones(embeds.shape[:2], dtype=torch.bool), torch.zeros(embeds.shape[:2], dtype=torch.int64))
    masked, plain = (language.hidden(embeds, mask=causal, positions=positions, unmasked=count) for count in (0, embeds.shape[1]))
    torch.testing.assert_close(plain, masked, rtol=1e-5, atol=1e-6)


def test_no_mask_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of the first rows is not looked at: that is where the time is saved."""
    masks: list[tuple[int, bool]] = []
    whole = attention.sdpa_attention_forward

    def watched(module: object, query: torch.Tensor, key: object, value: object, mask: torch.Tensor | None, **others: object) -> object:
        masks.append((query.shape[2], mask is not None))
        return whole(module, query, key, value, mask, **others)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    embeds, mask, positions, _ = _batch()
    _language("llama").hidden(embeds, mask=mask, positions=positions, unmasked=4)
    assert masks == [(4, False), (embeds.shape[1] - 4, True)] * 2


@pytest.mark.parametrize("unmasked", [0, 4])
def test_halves_attend_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch, unmasked: int) -> None:
    types: list[torch.dtype] = []
    whole = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *rest: object, **others: object) -> torch.Tensor:
        out = whole(query, *rest, **others)
        types.extend([query.dtype, out.dtype])
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    language, (embeds, mask, positions, real) = _language("grouped keys"), _batch()
    exact = language.hidden(embeds, mask=mask, positions=positions, unmasked=unmasked)
    types.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = language.hidden(embeds, mask=mask, positions=positions, unmasked=unmasked)
    assert set(types) == {torch.float32}
    torch.testing.assert_close(halves[real].float(), exact[real], atol=0.05, rtol=0.05)
    halves[real].float().square().sum().backward()
    assert embeds.grad.isfinite().all()


def test_layers_computed_again_know_it() -> None:
    found = []
    for again in (False, True):
        language = _language("llama").train()
        if again:
            language.recompute_layers()
        embeds, mask, positions, real = _batch()
        language.hidden(embeds, mask=mask, positions=positions, unmasked=4)[real].square().sum().backward()
        found.append(embeds.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_other_kinds_of_attention_keep_the_mask() -> None:
    language = _language("llama")
    embeds, mask, positions, real = _batch()
    split = language.hidden(embeds, mask=mask, positions=positions, unmasked=4)
    language.model.set_attn_implementation("eager")
    eager = language.hidden(embeds, mask=mask, positions=positions, unmasked=4)
    torch.testing.assert_close(split[real], eager[real], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU takes a C++ compiler")
def test_compiled_layers_take_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORTEST", 8)
    language = _language("llama")

    def states(length: int, unmasked: int) -> torch.Tensor:
        embeds = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(length), requires_grad=True)
        segments = (torch.arange(length) >= unmasked).long().expand(2, length)
        mask, positions = prefix_mask(torch.ones_like(segments, dtype=torch.bool), segments), torch.arange(length).expand(2, length)
        found = language.hidden(embeds, mask=mask, positions=positions, unmasked=unmasked)
        found.square().sum().backward()
        return torch.cat([found.detach(), embeds.grad])

    shapes = ((20, 15), (22, 17), (24, 9), (21, 21), (23, 23), (9, 4), (33, 30))
    expected = [states(*shape) for shape in shapes]
    language.compile_layers()
    for shape, wanted in zip(shapes, expected, strict=True):
        torch.testing.assert_close(states(*shape), wanted, rtol=1e-4, atol=1e-5)


def test_checkpoints_do_not_name_it() -> None:
    assert attention.NAME not in str(_language("llama").model.config.to_diff_dict())
