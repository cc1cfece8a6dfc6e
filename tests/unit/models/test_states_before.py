"""States that predict labels."""

from __future__ import annotations

import torch

from medplib.models.language import states_before


def test_is_a_boolean_index_with_the_same_gradient() -> None:
    torch.manual_seed(0)
    states, chosen = torch.randn(3, 7, 5), torch.rand(3, 6) > 0.5
    by_index, by_mask = states.clone().requires_grad_(), states.clone().requires_grad_()
    found, wanted = states_before(by_index, chosen), by_mask[:, :-1][chosen]
    assert torch.equal(found, wanted)
    grad = torch.randn_like(found)
    found.backward(grad)
    wanted.backward(grad)
    assert torch.equal(by_index.grad, by_mask.grad)
    assert states_before(states, torch.zeros_like(chosen)).shape == (0, 5)
