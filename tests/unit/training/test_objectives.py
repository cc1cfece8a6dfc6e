"""Loss terms that objectives compute themselves."""

from __future__ import annotations

import torch

from medplib.training.terms import per_answer


def test_per_answer_weighs_conversations_not_tokens():
    torch.manual_seed(0)
    target = torch.tensor([[0, 1, 1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    segments = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 2, 2, 2, 2, 2]])
    losses = torch.rand(int(target.sum()), requires_grad=True)
    dense = torch.zeros(target.shape).masked_scatter(target, losses.detach())
    means = [dense[row][target[row] & (segments[row] == k)].mean() for row in range(2) for k in (1, 2)]
    result = per_answer(losses, target, segments)
    torch.testing.assert_close(result.detach(), torch.stack(means).mean())
    result.backward()
    # Three tokens, one token, one token, four tokens; four answers.
    torch.testing.assert_close(losses.grad, torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 16, 1 / 16, 1 / 16, 1 / 16]))
