"""Commands in turns: one stands still while the other runs, children included, and both are waited for."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.turns import main

WRITER = """
import sys, time
for _ in range(60):
    with open(sys.argv[1], "a") as file:
        file.write(sys.argv[2])
    time.sleep(0.01)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


def test_one_stands_still_while_the_other_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "writer.py").write_text(WRITER)
    log = tmp_path / "log"
    command = f"echo begun; {sys.executable} {tmp_path}/writer.py {log} %s & wait"  # the writer is a child
    assert main(["--seconds", "0.2", command % "a", command % "b"]) == 0
    written, lines = log.read_text(), capfd.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert written.count("a") == written.count("b") == 60
    assert sum(one != other for one, other in pairwise(written)) < found["turns"]
    assert found["turns"] > 3
    assert found["exit_codes"] == [0, 0]
    assert found["ratio"] == pytest.approx(found["first_seconds"] / found["second_seconds"], rel=0.2)
    assert [line.split()[::2] for line in lines[:-1]] == [["first", "begun"], ["second", "begun"]]


def test_a_command_that_fails_is_told(capfd: pytest.CaptureFixture[str]):
    assert main(["--seconds", "5", "exit 3", "true"]) == 1
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["exit_codes"] == [3, 0]
