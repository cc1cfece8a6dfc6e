"""A stage goes on with another number of ranks, or under another strategy, as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Trained
from safetensors.torch import load_file

from medplib.training.resume import points_folder

ROOT = Path(__file__).parents[2]
STEPS = 12
FOUR = ("--data.batch_size", "4")
TWO_RANKS = ("--ranks", "2", "--data.batch_size", "2")


def leg(trained: Trained, out: Path, *more: str, stop: int, strategy: str = "one") -> subprocess.CompletedProcess:
    """Train stage IV in processes of its own, from the newest point to the one of step `stop`."""
    command = [sys.executable, str(ROOT / "tests" / "stopping.py"), "--config", str(trained.configs / "moe.yaml")]
    command += ["--config", str(ROOT / "configs" / "parts" / f"strategy_{strategy}.yaml")] if strategy != "one" else []
    command += ["--trainer.max_steps", str(STEPS), "--trainer.precision", "32-true", "--model.stage.optim.muon", "[]"]
    command += ["--model.stage.output", str(out / "weights"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "STOP_AT": str(stop), "LOSSES": str(out / "losses.txt")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def stopped(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 143, done.stdout[-1000:] + done.stderr[-2000:]


def losses(out: Path) -> list[float]:
    """Of all steps, over all legs."""
    rows = [line.split() for line in (out / "losses.txt").read_text().splitlines()]
    assert [int(step) for step, _ in rows] == list(range(1, len(rows) + 1))
    return [float(loss) for _, loss in rows]


def point(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max(points_folder(out / "weights").glob("step-*")))


@pytest.fixture(scope="module")
def alone(trained: Trained, tmp_path_factory) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of seven steps in one process and the point behind them."""
    out = tmp_path_factory.mktemp("alone")
    stopped(leg(trained, out, *FOUR, stop=7))
    return losses(out), point(out)


CHAINS = [["ddp", "one", "fsdp"], ["fsdp", "one", "ddp"], ["zero3", "one", "zero1"]]
if os.environ.get("MEDPLIB_RANKS") == "all":  # each takes a minute and starts five processes
    CHAINS += [["zero1"] * 3, ["zero2"] * 3, ["zero3"] * 3]


@pytest.mark.parametrize("strategies", CHAINS)
def test_two_ranks_one_two(trained: Trained, alone, tmp_path: Path, strategies: list[str]) -> None:
    """Two ranks, stopped at the end of an epoch; one, stopped inside the next; two. Every leg finds the bits that the one before left."""
    if any(strategy.startswith("zero") for strategy in strategies):
        pytest.importorskip("deepspeed")
    for strategy, ranks, stop in zip(strategies, (TWO_RANKS, FOUR, TWO_RANKS), (3, 5, 7), strict=True):
        more = ("--trainer.devices", "1") if ranks is FOUR else ()
        stopped(leg(trained, tmp_path, *ranks, *more, stop=stop, strategy=strategy))
    assert losses(tmp_path) == pytest.approx(alone[0], rel=1e-5)
    found = point(tmp_path)
    assert found.keys() >= alone[1].keys()
    for name, tensor in found.items():
        if name not in alone[1]:  # ZeRO counts steps of a parameter that never had a gradient, too
            assert name.startswith("optimizer.step.") or not tensor.any(), name
        elif name.startswith("optimizer."):
            torch.testing.assert_close(tensor, alone[1][name], rtol=1e-4, atol=1e-7, msg=name)


def test_bfloat16_goes_on_with_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    """Weights in pieces: those that are computed with are made of those that are optimised, not kept."""
    pytest.importorskip("deepspeed")
    more = (*FOUR, "--trainer.precision", "bf16-mixed", "--trainer.devices", "1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, stops in ((whole, (5,)), (parts, (2, 5))):
        out.mkdir()
        for stop in stops:
            stopped(leg(trained, out, *more, stop=stop, strategy="zero3"))
    assert losses(parts) == losses(whole)
    found, wanted = point(parts), point(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_batches_must_stay_as_large(trained: Trained, tmp_path: Path) -> None:
    stopped(leg(trained, tmp_path, *FOUR, stop=1))
    done = leg(trained, tmp_path, "--data.batch_size", "2", stop=7)
    assert done.returncode == 2
    assert "batches of 4 samples over all ranks" in done.stderr
    assert "make data.batch_size 4 on each rank" in done.stderr


def test_gradients_that_wait_for_the_next_epoch_would_be_lost(trained: Trained, tmp_path: Path) -> None:
    """Epochs of three batches, steps of two: ZeRO keeps the third batch's gradients for the next epoch."""
    pytest.importorskip("deepspeed")
    more = ("--trainer.devices", "1", "--trainer.accumulate_grad_batches", "2", "--resume.every", "1")
    done = leg(trained, tmp_path, *FOUR, *more, stop=7, strategy="zero2")
    assert done.returncode == 2
    assert "epochs of whole groups of accumulated batches" in done.stderr
