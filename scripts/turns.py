"""Two commands in turns: how long each takes on a machine whose speed changes from minute to minute.

One runs while all processes of the other are stopped, a few seconds each, until both have ended. Every line they print has the running
time of their own command in front; the last line is JSON with both times and their ratio. For commands of minutes (demos of two trees):

    python scripts/turns.py "bash /old/scripts/demo.sh" "bash /new/scripts/demo.sh"

Linux only; the commands must not wait for anything that goes on without them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


class Job:
    """A command in a session of its own, so that all its processes can be found; stopped until its first turn."""

    def __init__(self, name: str, command: str) -> None:
        self.name, self.command, self.seconds = name, command, 0.0
        self._since: float | None = time.perf_counter()
        self.process = subprocess.Popen(
            ["bash", "-c", command], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._pass_on, daemon=True).start()
        self.pause()

    def clock(self) -> float:
        """Seconds that it has run."""
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def go_on(self) -> None:
        """Let it run."""
        self._since = time.perf_counter()
        self._signal(signal.SIGCONT)

    def pause(self) -> None:
        """Stop all its processes, those too that begin meanwhile."""
        while self._signal(signal.SIGSTOP):
            pass
        self.seconds, self._since = self.clock(), None

    def run(self, seconds: float) -> bool:
        """Let it run for so long; whether it has ended."""
        self.go_on()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.pause()
            return False
        self.seconds, self._since = self.clock(), None
        return True

    def _signal(self, number: int) -> bool:
        """Send it to all processes of the session; whether one was running that should be stopped."""
        running = False
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    running |= number == signal.SIGSTOP and state != "T"
                    os.kill(int(folder.name), number)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return running

    def _pass_on(self) -> None:
        for line in self.process.stdout:
            print(f"{self.name} {self.clock():8.1f}  {line.rstrip()}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run both; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    options = parser.parse_args(arguments)
    jobs = [Job("first ", options.first), Job("second", options.second)]
    left, turns = list(jobs), 0
    try:
        while left:
            turns += len(left)
            left = [job for job in left if not job.run(options.seconds)]
    finally:
        for job in left:
            job._signal(signal.SIGKILL)
    codes = [job.process.returncode for job in jobs]
    first, second = (job.seconds for job in jobs)
    found = {"first_seconds": round(first, 1), "second_seconds": round(second, 1), "ratio": round(first / second, 3)}
    print(json.dumps({**found, "turns": turns, "exit_codes": codes}))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
