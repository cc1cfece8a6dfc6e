"""Processes that work as one: what they find is put together, and the error of one is the error of all, in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from medplib.errors import InputError
from medplib.launch import alone, meet, start
from medplib.ranks import gathered, joined, rank, world_size


def _go_on() -> None:
    """Until told to stop, in short steps: in one long sleep, one of thirty under load was told and slept on (docs/experiments.md)."""
    while True:
        time.sleep(0.05)


def _gather(out: Path) -> None:
    with joined():
        found = gathered([rank(), world_size()])
        Path(out, f"{rank()}.json").write_text(json.dumps(found))


def _one_fails(out: Path) -> None:
    with joined():
        if rank() == 1:
            raise InputError(where="rank", expected="a good file", found="a bad one")
        gathered([])  # would wait for ever
    Path(out, "done").touch()


def _breaks(out: Path) -> None:
    with joined():
        if rank() == 0:
            raise ZeroDivisionError
        _go_on()


def test_all_find_the_same(tmp_path: Path) -> None:
    start(partial(_gather, tmp_path), count=3)
    assert [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)] == [[0, 3, 1, 3, 2, 3]] * 3


def test_error_of_one_is_that_of_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^rank: expected a good file, found a bad one$"):
        start(partial(_one_fails, tmp_path), count=2)
    assert not list(tmp_path.iterdir())


def test_nobody_waits_for_a_process_that_broke(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        start(partial(_breaks, tmp_path), count=2)


def _tells(out: Path) -> None:
    """Ends in order when told to: a rank that writes a resume point takes a while."""

    def stop(number: int, frame: object) -> None:
        time.sleep(0.5 * rank())
        Path(out, f"told-{rank()}").touch()
        raise SystemExit(128 + number)

    with joined():
        signal.signal(signal.SIGTERM, stop)
        Path(out, f"ready-{rank()}").touch()
        _go_on()


def _command(out: Path) -> subprocess.Popen:
    """A command of two ranks that wait to be stopped."""
    script = out / "script.py"
    script.write_text(
        "import functools, pathlib, test_ranks\n"
        "if __name__ == '__main__':\n"
        f"    test_ranks.start(functools.partial(test_ranks._tells, pathlib.Path({str(out)!r})), count=2)\n"
    )
    here = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(here)})
    _until(lambda: len(list(out.glob("ready-*"))) == 2)
    return process


def _until(done, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_is_told_to_stop_tells_the_ranks_and_waits_for_them(tmp_path: Path) -> None:
    process = _command(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert sorted(path.name for path in tmp_path.glob("told-*")) == ["told-0", "told-1"]


def test_ranks_do_not_outlive_who_started_them(tmp_path: Path) -> None:
    process = _command(tmp_path)
    ranks = _children(process.pid)
    assert len(ranks) >= 2
    process.kill()
    process.wait(timeout=60)
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 30)
    assert not list(tmp_path.glob("told-*"))


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def _meets(out: Path) -> None:
    first = os.environ["RANK"] == "0"
    time.sleep(0 if first else 1)
    Path(out, f"here-{os.environ['RANK']}").touch()
    meet()
    assert len(list(out.glob("here-*"))) == 2
    with joined(), alone():
        assert (rank(), world_size(), os.environ.get("WORLD_SIZE")) == (0, 1, None)
    assert os.environ["WORLD_SIZE"] == "2"


def test_ranks_meet_and_part(tmp_path: Path) -> None:
    start(partial(_meets, tmp_path), count=2)
    meet()  # a process alone has nobody to wait for


def test_the_exit_code_that_a_rank_chose_is_that_of_the_command() -> None:
    with pytest.raises(SystemExit) as stopped:
        start(partial(sys.exit, 143), count=2)
    assert stopped.value.code == 143


def test_alone() -> None:
    with joined():
        assert (rank(), world_size(), gathered([1, 2])) == (0, 1, [1, 2])
