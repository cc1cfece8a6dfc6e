"""Which device a process takes, alone and among others of its machine."""

from __future__ import annotations

import pytest
import torch

from medplib.errors import InputError
from medplib.inference.device import choose_device


@pytest.mark.parametrize(
    ("name", "local_rank", "accelerators", "chosen"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 3, 0, "cpu"),
        ("auto", 0, 1, "cuda:0"),
        ("auto", 3, 2, "cuda:1"),
        ("cuda", 1, 2, "cuda:1"),
        ("cuda:0", 1, 2, "cuda:0"),
        ("cpu", 1, 2, "cpu"),
    ],
)
def test_each_takes_the_next(monkeypatch: pytest.MonkeyPatch, name: str, local_rank: int, accelerators: int, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: accelerators)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerators > 0)
    assert choose_device(name, local_rank=local_rank) == chosen


@pytest.mark.parametrize(
    ("name", "words"), [("cuda", "0 CUDA devices"), ("cuda:1", "0 CUDA devices"), ("gpu", "cuda:NUMBER"), ("meta", "cuda:NUMBER")]
)
def test_others_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=words):
        choose_device(name)
