"""Rows m of scripts/bench.py: two ranks that exchange gradients beside two processes that do not, one thread each."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, median_ratio
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from medplib.launch import meet, start
from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask
from medplib.ranks import joined, rank
from medplib.training.neighbours import SharedGradients


def rank_rows(device: str, *, steps: int = 2, batch: int = 4, turns: int = 7) -> list[Row]:
    """Efficiency: seconds of a step apart over seconds of a step together, median over turns of both ranks."""
    with tempfile.TemporaryDirectory() as folder:
        start(partial(work, steps, batch, turns, Path(folder)), count=2)
        found = [json.loads(Path(folder, f"{number}.json").read_text()) for number in range(2)]
    slower = {kind: [max(turn) for turn in zip(*(f[kind] for f in found), strict=True)] for kind in ("apart", "together", "shared")}
    rows = []
    for row, kind, how in (("m", "together", "under DDP (gloo)"), ("m_shared", "shared", "through shared memory (--ranks)")):
        ratio, details = median_ratio(slower, "apart", kind)
        name = f"two ranks of one thread {how} over two processes apart: throughput"
        rows.append(Row(row, name, ratio, "the same steps without exchange", 1.0, 0.9, 0.97, False, details))
    return rows


def work(steps: int, batch: int, turns: int, folder: Path) -> None:
    """Seconds of `steps` steps per turn and way, into a file; the gradients must be the mean of both ranks'."""
    torch.set_num_threads(1)
    with joined():
        torch.manual_seed(0)
        model = LanguageModel(LanguageConfig(hidden_size=256, layers=4, heads=4, mlp_size=704, vocab_size=512))
        together = DistributedDataParallel(_Loss(model))
        alone = together.module
        memory = SharedGradients(list(alone.parameters()), _told)
        torch.manual_seed(rank())
        ids = torch.randint(512, (batch, 160))
        _check(together, memory, alone, ids)
        found: dict[str, list[float]] = {"together": [], "apart": [], "shared": []}
        for turn in range(turns + 1):
            for way, module in (("together", together), ("apart", alone), ("shared", alone)):
                meet()  # both start at once, so that they load the machine alike
                begin = time.perf_counter()
                for _ in range(steps):
                    module(ids).backward()
                    if way == "shared":
                        memory.average()
                    module.zero_grad()
                if turn:
                    found[way].append(time.perf_counter() - begin)
        Path(folder, f"{rank()}.json").write_text(json.dumps(found))


def _told(said: str) -> str:
    box = [said]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


class _Loss(torch.nn.Module):
    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        self.language = language

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        whole = torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        mask = prefix_mask(whole, torch.zeros_like(ids))
        hidden = self.language.hidden(self.language.embed(ids), mask=mask, positions=positions, unmasked=ids.shape[1])
        return cross_entropy(self.language.logits(hidden[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def _check(together: torch.nn.Module, memory: SharedGradients, alone: torch.nn.Module, ids: torch.Tensor) -> None:
    """Both ways give the mean of the gradients."""
    parameter = next(alone.parameters())
    alone(ids).backward()
    expected = parameter.grad.clone()
    distributed.all_reduce(expected)
    memory.average()
    assert torch.allclose(parameter.grad, expected / 2, atol=1e-6), "the gradient exchanged through memory is not the mean"
    alone.zero_grad()
    together(ids).backward()
    assert torch.allclose(parameter.grad, expected / 2, atol=1e-6), "the exchanged gradient is not the mean"
    alone.zero_grad()
