"""The job script, with a scheduler that only writes down what it was asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"
JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8(x2)", "SLURM_CPUS_PER_TASK": "4"}


def run(folder: Path, *arguments: str, code: int = 0, job: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess, str]:
    """The script with commands of the scheduler that note their arguments; `srun` ends with `code`."""
    for name, end in (("srun", code), ("scontrol", 0)):
        command = folder / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/asked\nexit {end}\n')
        command.chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = {**plain, **(JOB if job is None else job), "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder)}
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)
    asked = folder / "asked"
    return done, asked.read_text() if asked.exists() else ""


def test_every_rank_gets_the_stage_and_its_place(tmp_path: Path) -> None:
    done, asked = run(tmp_path, "--config", "a.yaml", "--config", "b.yaml")
    assert done.returncode == 0
    assert asked.startswith("srun --kill-on-bad-exit=1 python -m medplib.fit")
    assert "--config a.yaml --config b.yaml --trainer.num_nodes 2 --trainer.devices 8" in asked


@pytest.mark.parametrize(("code", "again"), [(143, True), (0, False), (2, False), (1, False)])
def test_only_a_run_that_stopped_in_order_goes_back_into_the_queue(tmp_path: Path, code: int, again: bool) -> None:
    done, asked = run(tmp_path, "--config", "a.yaml", code=code)
    assert ("scontrol requeue 7" in asked) == again
    assert done.returncode == (0 if again else code)


@pytest.mark.parametrize(("arguments", "job"), [((), None), (("--config", "a.yaml"), {})])
def test_wrong_use_is_said(tmp_path: Path, arguments: tuple[str, ...], job: dict[str, str] | None) -> None:
    done, asked = run(tmp_path, *arguments, job=job)
    assert done.returncode != 0
    assert "sbatch" in done.stderr
    assert not asked
