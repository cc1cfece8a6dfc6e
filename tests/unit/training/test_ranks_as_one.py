"""Rows of all ranks in one loss: its value and gradient are those of one process that has them all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from medplib.launch import start
from medplib.ranks import gathered_rows, joined, rank
from medplib.training.ranks import of_all_ranks

OWN = ([0, 1, 2], [], [3, 4])
"""Which rows each of three ranks has."""


def _loss(parts: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.cat(parts)
    return (rows @ rows.T).logsumexp(dim=1).mean()


def _all() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4), torch.randn(4, 6)


def _one_of_three(out: Path) -> None:
    rows, weight = _all()
    weight.requires_grad_()
    with joined():
        mine = rows[OWN[rank()]]
        found = gathered_rows(mine)
        loss = _loss(of_all_ranks(mine @ weight))
        loss.backward()
        gradients = gathered_rows(weight.grad[None])
    save_file(
        {"rows": torch.cat(found), "loss": loss.detach(), "gradient": torch.cat(gradients).mean(dim=0)}, out / f"{len(mine)}.safetensors"
    )
    assert [len(part) for part in found] == [len(own) for own in OWN]


def test_ranks_with_some_rows_and_with_none(tmp_path: Path) -> None:
    rows, weight = _all()
    weight.requires_grad_()
    loss = _loss([rows @ weight])
    loss.backward()
    start(partial(_one_of_three, tmp_path), count=3)
    for own in OWN:
        found = load_file(tmp_path / f"{len(own)}.safetensors")
        torch.testing.assert_close(found["rows"], rows)
        torch.testing.assert_close(found["loss"], loss.detach())
        torch.testing.assert_close(found["gradient"], weight.grad)


def test_a_process_alone() -> None:
    own = torch.randn(3, 2, requires_grad=True)
    (found,) = of_all_ranks(own)
    found.sum().backward()
    assert torch.equal(found, own)
    assert torch.equal(own.grad, torch.ones(3, 2))
