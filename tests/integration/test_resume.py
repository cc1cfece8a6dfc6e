"""A stage that is stopped at any moment goes on as if it had not been, to the last bit."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Trained

from medplib.errors import InputError
from medplib.fit import main
from medplib.lineage import load_checkpoint
from medplib.training import resume
from medplib.training.module import StageModule
from medplib.training.resume import points_folder

STEPS = 12


def arguments(trained: Trained, out: Path, *more: str) -> list[str]:
    return ["--config", str(trained.configs / "moe.yaml"), "--trainer.max_steps", str(STEPS), "--model.stage.output", str(out), *more]


@pytest.fixture(scope="module")
def uninterrupted(trained: Trained, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("uninterrupted") / "moe"
    main(arguments(trained, out))
    return load_checkpoint(out).lineage.weights_sha256


class StoppedError(Exception):
    """Stands for a process that dies."""


def die_behind(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the run die right after it has written the point of `step`."""
    write = resume.ResumePoints._write

    def write_and_die(self, trainer, module):
        write(self, trainer, module)
        if trainer.global_step == step:
            raise StoppedError

    monkeypatch.setattr(resume.ResumePoints, "_write", write_and_die)


def stopped_run(trained: Trained, out: Path, monkeypatch: pytest.MonkeyPatch, step: int, *more: str) -> list[Path]:
    with monkeypatch.context() as patch:
        die_behind(patch, step)
        with pytest.raises(StoppedError):
            main(arguments(trained, out, "--resume.every", "1", *more))
    return sorted(points_folder(out).iterdir())


@pytest.mark.parametrize("step", [1, 3, 4, 7, 8, 11])  # inside and at the end of epochs of three batches
def test_goes_on_bit_for_bit(trained: Trained, uninterrupted: str, tmp_path: Path, monkeypatch, step: int, caplog) -> None:
    caplog.set_level("INFO")
    points = stopped_run(trained, tmp_path / "moe", monkeypatch, step)
    assert len(points) == min(step, 2)
    main(arguments(trained, tmp_path / "moe"))
    assert f"goes on at step {step}" in caplog.text
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == uninterrupted
    assert not points_folder(tmp_path / "moe").exists()


@pytest.mark.parametrize("steps", [(3, 6), (2, 3, 5, 6, 9), range(1, STEPS)])
def test_goes_on_after_several_stops(trained: Trained, uninterrupted: str, tmp_path: Path, monkeypatch, steps, caplog) -> None:
    """Stopped at the end of an epoch and again at the end of the next one, a run must still know which epoch follows."""
    for step in steps:
        stopped_run(trained, tmp_path / "moe", monkeypatch, step)
    caplog.set_level("INFO")
    main(arguments(trained, tmp_path / "moe"))
    assert f"goes on at step {steps[-1]}" in caplog.text
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == uninterrupted


@pytest.mark.parametrize(("workers", "limit", "steps"), [(0, 3, (5,)), (1, 3, (3, 6)), (1, 2, (4, 5))])
def test_goes_on_where_epochs_are_counted(trained: Trained, tmp_path: Path, monkeypatch, workers: int, limit: int, steps) -> None:
    """The loader is then built before the run knows where it goes on; epochs may be cut short."""
    more = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "4", "--data.workers", str(workers)]
    more += ["--trainer.limit_train_batches", str(limit)]
    main(arguments(trained, tmp_path / "whole", *more))
    for step in steps:
        stopped_run(trained, tmp_path / "moe", monkeypatch, step, *more)
    main(arguments(trained, tmp_path / "moe", *more))
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == load_checkpoint(tmp_path / "whole").lineage.weights_sha256


def test_told_to_stop_it_waits_for_the_step(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    more = ["--trainer.accumulate_grad_batches", "3", "--trainer.max_steps", "6"]
    main(arguments(trained, tmp_path / "whole", *more))
    batch_end = resume.ResumePoints.on_train_batch_end

    def told(self, trainer, module, outputs, batch, batch_idx):
        self.told_to_stop |= trainer.fit_loop.epoch_loop.batch_progress.total.ready == 7  # inside the gathering of step 3
        batch_end(self, trainer, module, outputs, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(resume.ResumePoints, "on_train_batch_end", told)
        with pytest.raises(SystemExit) as stopped:
            main(arguments(trained, tmp_path / "moe", *more))
    assert stopped.value.code == 128 + signal.SIGTERM
    main(arguments(trained, tmp_path / "moe", *more))
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == load_checkpoint(tmp_path / "whole").lineage.weights_sha256


def test_told_to_stop_while_it_validates(trained: Trained, uninterrupted: str, tmp_path: Path, monkeypatch, caplog) -> None:
    """Between two steps Lightning's own handler would end the run without a point."""
    caplog.set_level("INFO")
    validated = StageModule.on_validation_epoch_end

    def told(self):
        validated(self)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "on_validation_epoch_end", told)
        with pytest.raises(SystemExit) as stopped:
            main(arguments(trained, tmp_path / "moe"))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped at step 5" in caplog.text
    main(arguments(trained, tmp_path / "moe"))
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == uninterrupted


def _truncate(point: Path) -> None:
    point.write_bytes(point.read_bytes()[:-100])


def _empty(point: Path) -> None:
    point.write_bytes(b"")


def _flip(point: Path) -> None:
    data = bytearray(point.read_bytes())
    data[len(data) // 2] ^= 4
    point.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip])
def test_a_damaged_point_is_named_and_the_one_before_is_used(
    trained: Trained, uninterrupted, tmp_path, monkeypatch, damage, caplog
) -> None:
    caplog.set_level("INFO")
    newest = stopped_run(trained, tmp_path / "moe", monkeypatch, 5)[-1]
    damage(newest)
    (newest.parent / ".part-left-behind").write_bytes(b"half a file")
    main(arguments(trained, tmp_path / "moe"))
    assert f"{newest} is damaged" in caplog.text
    assert "goes on at step 4" in caplog.text
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == uninterrupted


def test_a_point_of_another_run_is_refused(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    stopped_run(trained, tmp_path / "moe", monkeypatch, 2)
    with pytest.raises(InputError, match=r"--resume\.fresh"):
        main(arguments(trained, tmp_path / "moe", "--model.stage.optim.lr", "0.002"))
    main(arguments(trained, tmp_path / "moe", "--model.stage.optim.lr", "0.002", "--resume.fresh", "true"))


def test_a_full_disk_does_not_end_the_run(trained: Trained, uninterrupted, tmp_path: Path, monkeypatch, caplog) -> None:
    write = resume.write_safetensors

    def full(path, tensors, *, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resume, "write_safetensors", full)
    main(arguments(trained, tmp_path / "moe", "--resume.every", "4"))
    assert caplog.text.count("No space left on device") == 2
    assert write is not full
    assert load_checkpoint(tmp_path / "moe").lineage.weights_sha256 == uninterrupted


def started(trained: Trained, out: Path, *, steps: int = 40) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "medplib.fit", *arguments(trained, out, "--resume.every", "1"), "--trainer.max_steps", str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_told_to_stop_it_writes_a_point_and_says_so(trained: Trained, tmp_path: Path) -> None:
    process = started(trained, tmp_path / "moe", steps=5000)  # never reached
    deadline = time.monotonic() + 120
    while not list(points_folder(tmp_path / "moe").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "started again, the stage goes on there" in said


@pytest.mark.skipif("MEDPLIB_KILLS" not in os.environ, reason="set MEDPLIB_KILLS to the number of deaths")
def test_killed_at_random_moments(trained: Trained, tmp_path: Path) -> None:
    """MEDPLIB_KILLS says how often (20 for a thorough run); points are written in every step, so some deaths fall into writing.

    All runs are processes of their own: the command flushes denormal numbers to zero, which a test process does not. Each lives for one
    to five steps, because what a death leaves wrong may show only in the epoch after the next one.
    """
    kills, rng = int(os.environ["MEDPLIB_KILLS"]), random.Random(0)
    steps, folder = 12 * kills, points_folder(tmp_path / "moe")
    assert started(trained, tmp_path / "whole", steps=steps).wait(timeout=600) == 0

    def newest() -> int:
        return max((int(point.name.split("-")[1]) for point in folder.glob("step-*")), default=0)

    for _ in range(kills):
        goal, process = newest() + rng.randint(1, 5), started(trained, tmp_path / "moe", steps=steps)
        while newest() < goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert started(trained, tmp_path / "moe", steps=steps).wait(timeout=600) == 0
    whole, found = (load_checkpoint(tmp_path / name).tensors() for name in ("whole", "moe"))
    assert {name for name, tensor in whole.items() if not torch.equal(found[name], tensor)} == set()
