"""Row m of scripts/bench.py: two ranks that exchange gradients beside two processes that do not, one thread each.

As a worker: python scripts/bench_ranks.py RANK STEPS BATCH TURNS STORE. Both workers train together and apart in turns, and print one line.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, median_ratio
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask


def rank_rows(device: str, *, steps: int = 2, batch: int = 4, turns: int = 7) -> list[Row]:
    """Efficiency of DDP over gloo: seconds of a step apart over seconds of a step together, median over turns of both ranks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__]
        tail = [str(value) for value in (steps, batch, turns, Path(folder) / "store")]
        workers = [subprocess.Popen([*command, str(rank), *tail], stdout=subprocess.PIPE, text=True, env=environment) for rank in (0, 1)]
        lines = [worker.communicate(timeout=900)[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a rank failed; its error is above")
    found = [json.loads(line.splitlines()[-1]) for line in lines]
    slower = {kind: [max(turn) for turn in zip(*(f[kind] for f in found), strict=True)] for kind in ("apart", "together")}
    ratio, details = median_ratio(slower, "apart", "together")
    name = "two ranks of one thread under DDP (gloo) over two processes apart: throughput"
    return [Row("m", name, ratio, "the same steps without exchange", 1.0, 0.9, 0.97, False, details)]


def work(rank: int, steps: int, batch: int, turns: int, store: Path) -> dict[str, list[float]]:
    """Seconds of `steps` steps per turn, together and apart; the gradients must be the mean of both ranks'."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(hidden_size=256, layers=4, heads=4, mlp_size=704, vocab_size=512))
    shared = DistributedDataParallel(_Loss(model))
    alone = shared.module
    torch.manual_seed(rank)
    ids = torch.randint(512, (batch, 160))
    _check(shared, alone, ids)
    found: dict[str, list[float]] = {"together": [], "apart": []}
    for turn in range(turns + 1):
        for name, module in (("together", shared), ("apart", alone)):
            distributed.barrier()  # both start at once, so that they load the machine alike
            begin = time.perf_counter()
            for _ in range(steps):
                module(ids).backward()
                module.zero_grad(set_to_none=False)
            if turn:
                found[name].append(time.perf_counter() - begin)
    distributed.destroy_process_group()
    return found


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


def _check(shared: torch.nn.Module, alone: torch.nn.Module, ids: torch.Tensor) -> None:
    parameter = next(alone.parameters())
    alone(ids).backward()
    expected = parameter.grad.clone()
    distributed.all_reduce(expected)
    alone.zero_grad()
    shared(ids).backward()
    assert torch.allclose(parameter.grad, expected / 2, atol=1e-6), "the exchanged gradient is not the mean"
    alone.zero_grad()


if __name__ == "__main__":
    numbers = [int(value) for value in sys.argv[1:5]]
    print(json.dumps(work(*numbers, Path(sys.argv[5]))))
