"""Two ranks give the losses and weights of one, whatever the strategy: the mixture stage and those of stage 0, uneven batches, batches
without masks or captions.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Trained

from medplib.lineage import load_checkpoint

PARTS = Path(__file__).parents[2] / "configs" / "parts"
STEPS = 6


VAL_RECORDS = 5
"""One rank of two has two batches of two then, the other one."""


@dataclass(frozen=True)
class Run:
    """Loss of every step, and what the last validation found."""

    losses: list[float]
    val: dict[str, float]


def run(trained: Trained, out: Path, *more: str, stage: str = "moe") -> Run:
    """Train a stage in processes of its own."""
    return run_stages(trained, out, *more, stages=(stage,))[stage]


def run_stages(trained: Trained, out: Path, *more: str, stages: tuple[str, ...]) -> dict[str, Run]:
    """Train stages, one after the other in the same processes, each from what the toy stages before it made; a single one right in OUT."""
    words, folders = [], {stage: out if len(stages) == 1 else out / stage for stage in stages}
    for stage, folder in folders.items():
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args.save_dir": str(folder), "init_args.name": "logs"}
        words += ["--then", "--config", str(trained.configs / f"{stage}.yaml"), "--trainer.max_steps", str(STEPS)]
        words += [word for key, value in logger.items() for word in (f"--trainer.logger.{key}", value)]
        words += ["--model.stage.optim.muon", "[]", "--model.stage.output", str(folder / "weights"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(Path(__file__).parents[1] / "smooth.py"), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {stage: _found(folder) for stage, folder in folders.items()}


def _found(folder: Path) -> Run:
    rows = list(csv.DictReader((folder / "logs" / "version_0" / "metrics.csv").open()))
    last = [row for row in rows if any(value for name, value in row.items() if name.startswith("val/"))][-1]
    val = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    return Run([float(row["train/loss"]) for row in rows if row["train/loss"]], val)


@pytest.fixture(scope="module")
def alone(trained: Trained, tmp_path_factory) -> tuple[Run, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("alone")
    done = run(trained, out, "--data.batch_size", "4", *_mixed_validation(trained))
    return done, load_checkpoint(out / "weights").tensors()


def _mixed_validation(trained: Trained) -> tuple[str, ...]:
    """Questions with masks and without, in numbers that ranks cannot share evenly."""
    return "--data.val", f"[{trained.data / 'vqa_closed.json'},{trained.data / 'grounding.json'}]", "--data.val_limit", str(VAL_RECORDS)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_two_ranks_are_one(trained: Trained, alone, tmp_path: Path, strategy: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    more = ["--config", str(PARTS / f"strategy_{strategy}.yaml"), "--trainer.precision", "32-true"]
    batch = ("--data.batch_size", "4", "--data.shared_batch", "true") if strategy == "ddp" else ("--data.batch_size", "2")
    started = ("--trainer.devices", "2") if strategy == "fsdp" else ("--ranks", "2")  # by Lightning, or by the command itself
    done = run(trained, tmp_path, *more, *started, *batch, *_mixed_validation(trained))
    assert len(done.losses) == STEPS
    assert done.losses == pytest.approx(alone[0].losses, rel=1e-5)
    of_batches = {"val/router", "val/router_task"}  # no means over items that any batches would give
    assert done.val.keys() == alone[0].val.keys()
    assert {n: v for n, v in done.val.items() if n not in of_batches} == pytest.approx(
        {n: v for n, v in alone[0].val.items() if n not in of_batches}, rel=1e-4, abs=1e-5
    )
    assert load_checkpoint(tmp_path / "weights").lineage.ranks == 2
    found = load_checkpoint(tmp_path / "weights").tensors()
    assert found.keys() == alone[1].keys()
    for name, tensor in alone[1].items():  # Adam divides gradients near zero by their own size, so single values may part earlier
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


STAGE_0 = ("dense0", "vision0")
ONE_QUESTION = ("--data.batch_size", "4", "--data.draw.conversations", "1")
"""About an image, so that some ranks have no caption in their part of a batch."""


@pytest.fixture(scope="module")
def stage_0(trained: Trained, tmp_path_factory) -> tuple[dict[str, Run], Path]:
    out = tmp_path_factory.mktemp("stage_0")
    return run_stages(trained, out, *ONE_QUESTION, stages=STAGE_0), out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero3"])
def test_two_ranks_are_one_in_stage_0(trained: Trained, stage_0: tuple[dict[str, Run], Path], tmp_path: Path, strategy: str) -> None:
    """Masks of which one rank has more than the other; captions against the images of both ranks."""
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    more = ("--config", str(PARTS / f"strategy_{strategy}.yaml"), "--trainer.precision", "32-true", "--ranks", "2")
    both = run_stages(trained, tmp_path, *more, *ONE_QUESTION, "--data.shared_batch", "true", stages=STAGE_0)
    for stage, alone in stage_0[0].items():
        assert both[stage].losses == pytest.approx(alone.losses, rel=1e-5, abs=1e-5)
        assert both[stage].val == pytest.approx(alone.val, rel=1e-4, abs=1e-5)
        found, wanted = (load_checkpoint(folder / stage / "weights").tensors() for folder in (tmp_path, stage_0[1]))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


IN_BFLOAT16 = ("dense0", "grounding_expert", "moe")
"""Those with masks, in whose parts tensors of several types meet."""


@pytest.fixture(scope="module")
def in_float32(trained: Trained, tmp_path_factory) -> dict[str, Run]:
    return run_stages(trained, tmp_path_factory.mktemp("float32"), stages=IN_BFLOAT16)


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_stages_train_in_bfloat16(trained: Trained, in_float32: dict[str, Run], tmp_path: Path, strategy: str) -> None:
    """As the configurations at full size are started: parts, buffers and inputs of several types, losses close to those in float32."""
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    config = PARTS / f"strategy_{strategy}.yaml"
    found = run_stages(trained, tmp_path, "--trainer.precision", "bf16-mixed", "--config", str(config), "--ranks", "1", stages=IN_BFLOAT16)
    for stage, run_ in in_float32.items():
        assert found[stage].losses == pytest.approx(run_.losses, rel=0.02), stage
        assert found[stage].val.keys() == run_.val.keys()


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_other_types_are_refused_under_zero(trained: Trained, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("deepspeed")
    more = ("--config", str(PARTS / "strategy_zero2.yaml"), "--trainer.precision", precision)
    with pytest.raises(AssertionError, match=rf"error: trainer\.precision: expected bf16-mixed or 32-true under ZeRO, found {precision}"):
        run(trained, tmp_path, *more)


def test_shared_memory_and_sockets_give_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    """Gradients gathered over two batches, parts that only some steps use; started by the command itself, or by Lightning under DDP."""
    more = ("--config", str(PARTS / "strategy_ddp.yaml"), "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "2")
    losses = [
        run(trained, tmp_path / by, *more, *words).losses for by, words in (("own", ["--ranks", "2"]), ("ddp", ["--trainer.devices", "2"]))
    ]
    assert losses[0] == losses[1]
    own, ddp = (load_checkpoint(tmp_path / by / "weights").lineage.weights_sha256 for by in ("own", "ddp"))
    assert own == ddp


@pytest.mark.parametrize(
    ("strategy", "option", "value", "said"),
    [
        ("zero2", "optim.muon", "[lora]", "muon"),
        ("fsdp", "optim.muon", "[lora]", "muon"),
        ("fsdp", "frozen_dtype", "bfloat16", "frozen_dtype float32"),
        ("fsdp", "compile", "true", "compile false"),
    ],
)
def test_what_pieces_do_not_allow_is_refused(trained: Trained, tmp_path: Path, strategy: str, option: str, value: str, said: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    more = ("--trainer.precision", "32-true", "--trainer.devices", "1", f"--model.stage.{option}", value)
    with pytest.raises(AssertionError, match=said):
        run(trained, tmp_path, "--config", str(PARTS / f"strategy_{strategy}.yaml"), *more)


def test_a_batch_that_ranks_cannot_share_is_refused(trained: Trained, tmp_path: Path) -> None:
    more = ("--trainer.devices", "3", "--data.batch_size", "4", "--data.shared_batch", "true")
    with pytest.raises(AssertionError, match=r"error: data\.batch_size: expected a multiple of the 3 ranks that share a batch, found 4"):
        run(trained, tmp_path, "--config", str(PARTS / "strategy_ddp.yaml"), *more)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_steps_without_some_gradients_are_refused_under_zero(trained: Trained, tmp_path: Path, strategy: str) -> None:
    """Masks in half of the steps: ZeRO would move the mask decoder by old gradients in the others."""
    pytest.importorskip("deepspeed")
    more = ("--trainer.precision", "32-true", "--trainer.devices", "1", "--model.stage.losses.mask_share", "0.5")
    with pytest.raises(AssertionError, match="the same parameters in every step"):
        run(trained, tmp_path, "--config", str(PARTS / f"strategy_{strategy}.yaml"), *more)


def test_weights_lie_in_pieces(trained: Trained, tmp_path: Path) -> None:
    """Under FSDP every rank holds a part of every weight of a layer, and of nothing the whole."""
    script = tmp_path / "look.py"
    script.write_text(
        "import sys, medplib.fit\n"
        "from torch.distributed.tensor import DTensor\n"
        "from medplib.training.sharded import ShardedStrategy\n"
        "split = ShardedStrategy._split\n"
        "def look(self, model):\n"
        "    split(self, model)\n"
        "    whole = sum(p.numel() for p in model.parameters())\n"
        "    mine = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))\n"
        "    sys.exit(f'pieces {mine / whole:.2f}')\n"
        "ShardedStrategy._split = look\n"
        "medplib.fit.main(sys.argv[1:])\n"
    )
    command = [sys.executable, str(script), "--config", str(trained.configs / "moe.yaml"), "--config", str(PARTS / "strategy_fsdp.yaml")]
    command += ["--trainer.devices", "2", "--model.stage.output", str(tmp_path / "weights")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    share = float(done.stderr.rpartition("pieces ")[2].split()[0])
    assert 0.45 < share < 0.56
