"""Rows that train apart from their tables: the same function, the same gradients, folded back without a trace."""

import torch

from medplib.models.language import TOKEN_TABLES, LanguageConfig, LanguageModel
from medplib.training.lora import merged

IDS = torch.tensor([[1, 5, 2, 5], [3, 4, 5, 0]])


def language() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(LanguageConfig(hidden_size=16, layers=1, heads=2, mlp_size=24, vocab_size=9))


def test_they_start_as_the_rows_of_the_tables():
    model = language()
    states = torch.randn(2, 3, 16)
    embeds, logits = model.embed(IDS), model.logits(states)
    model.train_rows((5,))
    assert torch.equal(model.embed(IDS), embeds)
    torch.testing.assert_close(model.logits(states), logits)


def test_gradients_are_those_of_the_rows():
    plain, apart = language(), language()
    apart.train_rows((5,))
    weights = torch.randn(9)
    for model in (plain, apart):
        hidden = model.embed(IDS)
        (model.logits(hidden) * weights).sum().backward()
    torch.testing.assert_close(apart.rows.embedding.weight.grad[0], plain.embeddings.weight.grad[5])
    torch.testing.assert_close(apart.rows.head.weight.grad[0], plain.head.weight.grad[5])


def test_they_are_folded_into_the_tables():
    model = language()
    model.train_rows((5,))
    with torch.no_grad():
        model.rows.embedding.weight.add_(1)
        model.rows.head.weight.sub_(1)
    state = {f"language.{name}": tensor for name, tensor in model.state_dict().items()}
    plain = {name: tensor.read() for name, tensor in merged(state, None, rows=(5,)).items()}
    assert not any("rows" in name for name in plain)
    for table, rows in zip(TOKEN_TABLES, (model.rows.embedding.weight, model.rows.head.weight), strict=True):
        assert torch.equal(plain[table][5], rows[0])
        kept = [0, 1, 2, 3, 4, 6, 7, 8]
        assert torch.equal(plain[table][kept], state[table][kept])
