"""Which processors multiply bfloat16, and products that lose nothing."""

from __future__ import annotations

import pytest
import torch

from medplib.models.language import LanguageConfig, LanguageModel
from medplib.models.precision import bfloat16_parts, common_length, exact_product, lengthened, multiplies_bfloat16


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_a_processor_says_what_it_multiplies(monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert multiplies_bfloat16("cpu") is expected
    assert multiplies_bfloat16("meta") is False


def test_a_torch_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert multiplies_bfloat16("cpu") is False


def test_three_parts_hold_a_float() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    parts = bfloat16_parts(values, 3)
    assert {part.dtype for part in parts} == {torch.bfloat16}
    assert torch.equal(sum(part.double() for part in parts).float(), values)


def test_products_are_summed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator).bfloat16() for size in ((5, 4096), (4096, 3)))
    product = exact_product(left, right)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, (left.double() @ right.double()).float(), atol=1e-3, rtol=1e-4)


def test_common_lengths_are_few_and_near() -> None:
    found = [common_length(count) for count in range(1, 4097)]
    assert all(count <= length <= max(count * 17 / 16, count + 7) for count, length in enumerate(found, 1))
    assert found == sorted(found)
    assert len(set(found)) < 140


def test_only_halves_on_a_cpu_are_lengthened() -> None:
    rows = torch.randn(5, 3)
    assert lengthened(rows) is rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        longer = lengthened(rows)
        assert lengthened(rows[:0]).shape == (0, 3)
    assert longer.shape == (8, 3)
    assert torch.equal(longer[:5], rows)
    assert not longer[5:].any()
    assert lengthened(rows.bfloat16()).shape == (8, 3)
    assert lengthened(torch.randn(8, 3).bfloat16()).shape == (8, 3)
    assert lengthened(rows.to("meta", torch.bfloat16)).shape == (5, 3)


@pytest.mark.parametrize("rows", [0, 1, 5, 8, 33])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_are_those_of_the_rows_asked_for(rows: int, autocast: bool) -> None:
    """They are computed for a few rows more where lengths that are new cost much; what is behind them gets no gradient."""
    torch.manual_seed(0)
    language, states = LanguageModel(LanguageConfig(vocab_size=60, hidden_size=16, layers=1, heads=2, mlp_size=32)), torch.randn(rows, 16)
    states.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, expected = language.logits(states), language.head(states).float()
    assert logits.shape == (rows, 60)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)
    for one, other in zip(
        *(torch.autograd.grad(x.square().sum(), [states, language.head.weight]) for x in (logits, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert language.logits(torch.randn(2, rows, 16)).shape == (2, rows, 60)
