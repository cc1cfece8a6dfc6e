"""Two commands in turns: how long each takes on a machine whose speed changes from minute to minute.

One runs while all processes of the other are stopped, a few seconds each, until both have ended. Every line they print has the running
time of their own command in front; the last line is JSON with both times and their ratio. For commands of minutes (demos of two trees):

    python scripts/turns.py "bash /old/scripts/demo.sh" "bash /new/scripts/demo.sh"

Linux only; the commands must not wait for anything that goes on without them.
"""

from __future__ import annotations

import argparse
import json
import math
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
        self.name, self.command = name, command
        self._clock = (0.0, time.perf_counter())
        """Seconds of earlier turns, and when this one began; infinity between turns."""
        self.process = subprocess.Popen(
            ["bash", "-c", command], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self.reader = threading.Thread(target=self._pass_on, daemon=True)
        self.reader.start()
        self.pause()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        before, since = self._clock
        return before + max(0.0, time.perf_counter() - since)

    def go_on(self) -> None:
        """Let it run."""
        self._clock = (self.seconds, time.perf_counter())
        self._signal(signal.SIGCONT)

    def pause(self) -> None:
        """Stop all its processes, those too that begin meanwhile.

        A process that waits for a child to begin cannot be stopped before the child has: then all get a moment more.
        """
        passes = 0
        while self._signal(signal.SIGSTOP):
            passes += 1
            if passes % 100 == 0:
                self._signal(signal.SIGCONT)
                time.sleep(0.01)
        self._ended()

    def _ended(self) -> None:
        self._clock = (self.seconds, math.inf)

    def run(self, seconds: float) -> bool:
        """Let it run for so long; whether it has ended."""
        self.go_on()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.pause()
            return False
        self._ended()
        return True

    def end(self) -> None:
        """Kill what is left of it, and pass on what it has said."""
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
        self.reader.join(10)

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
            print(f"{self.name} {self.seconds:8.1f}  {line.rstrip()}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run both; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    options = parser.parse_args(arguments)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # nothing may stay stopped behind it
    jobs: list[Job] = []
    turns = 0
    try:
        for name, command in (("first ", options.first), ("second", options.second)):
            jobs.append(Job(name, command))
        left = list(jobs)
        while left:
            turns += len(left)
            left = [job for job in left if not job.run(options.seconds)]
    finally:
        for job in jobs:
            job.end()
        signal.signal(signal.SIGTERM, before)
    codes = [job.process.returncode for job in jobs]
    first, second = (job.seconds for job in jobs)
    found = {"first_seconds": round(first, 1), "second_seconds": round(second, 1), "ratio": round(first / second, 3)}
    print(json.dumps({**found, "turns": turns, "exit_codes": codes}))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
