"""Several processes of this machine that are started together: what starts them, and what each knows about the others.

Nothing here needs torch, which takes a second to import: a command that only starts others does without.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import numpy as np

from medplib.errors import InputError

GRACE = 60.0
"""Seconds that ranks have to end by themselves when another one has broken off."""
_NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


BOARD = 64
"""So many values of each process the others of `start` can read without asking."""


class Here:
    """What this process is besides one of a group."""

    meeting: Barrier | None = None
    board: np.ndarray | None = None
    """(2, ranks, BOARD) float64 that all processes of `start` see. Who writes into one half has met the others behind the other one, so
    nobody still reads what he writes over."""
    half: int = 0
    alone: int | None = None
    """Which of the processes this is, where it works by itself."""


def launched() -> bool:
    """Whether this process was started as one of several (torchrun sets these variables, and `start` does)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of the ranks of this machine this process is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def meet() -> None:
    """Wait for the other processes of `start`, however long they take; nothing for a process alone."""
    if Here.meeting is not None:
        Here.meeting.wait()


def can_meet() -> bool:
    """Whether this process is one of those that `start` has started, and now together with them."""
    return Here.meeting is not None and Here.alone is None


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does something by itself, whatever others were started beside it."""
    Here.alone = local_rank()
    try:
        with _environment(dict.fromkeys(_NAMES)):
            yield
    finally:
        Here.alone = None


def own_place() -> int | None:
    """Which of the processes of `start` this one is, inside `alone`; None elsewhere. Its accelerator has the same number."""
    return Here.alone


def start(work: Callable[[], None], *, count: int) -> None:
    """Call `work` in `count` new processes of this machine, which share its cores, and wait for all of them.

    Told to stop (SIGTERM), this process tells them and waits until they have.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        count: how many.

    Raises:
        InputError: that of the first process that met one; the others are stopped.
        SystemExit: the processes were told to stop and did, or one of them chose its exit code.
        RuntimeError: a process broke; its own message stands above.
    """
    context = get_context("spawn")
    errors, meeting, board = context.SimpleQueue(), context.Barrier(count), context.RawArray("d", 2 * count * BOARD)
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"SLURM_JOB_NAME": "bash"} if "SLURM_JOB_ID" in os.environ else {}  # else Lightning counts Slurm's tasks instead
    shared |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, _cores() // count))}
    processes: list[BaseProcess] = []
    told: list[int] = []
    first = None
    try:
        for index in range(count):
            with _environment({**shared, "RANK": str(index), "LOCAL_RANK": str(index)}):  # read when a new process imports torch
                processes.append(context.Process(target=_run, args=(work, errors, meeting, board)))
                processes[-1].start()
        with _passing_on(signal.SIGTERM, processes, told):
            first = _wait(processes)
            _break(meeting)
            for process in processes if told else ():
                process.join()
    except KeyboardInterrupt:  # a terminal has told them, too
        _join(processes, GRACE)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        _break(meeting)
        _end([process for process in processes if process.pid is not None])
    if not errors.empty():
        raise InputError(errors.get())
    if told and any(process.exitcode for process in processes):
        raise SystemExit(128 + told[0])
    if first and first > 128:
        raise SystemExit(first)
    if first:
        raise RuntimeError(f"a rank ended with exit code {first}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _break(meeting: Barrier) -> None:
    """Who waits for one that has ended would wait for ever. By a thread, which may wait for ever itself for one that was killed."""
    threading.Thread(target=meeting.abort, daemon=True).start()


def _end(processes: Sequence[BaseProcess]) -> None:
    """Tell them, wait a while, kill."""
    try:
        for process in processes:
            process.terminate()
        _join(processes, GRACE)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _wait(processes: Sequence[BaseProcess]) -> int | None:
    """Until all have ended, or one badly: the others would wait for it for ever. The exit code of that one."""
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        for sentinel in connection.wait(list(waiting)):
            process = waiting.pop(sentinel)
            process.join()
            if process.exitcode:
                return process.exitcode
    return None


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Until all have ended, or so long."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


@contextmanager
def _passing_on(number: int, processes: Sequence[BaseProcess], told: list[int]) -> Iterator[None]:
    """Inside, the signal goes to the processes instead, and its number into `told`; where a thread may not say so, nothing."""

    def tell(number: int, frame: object) -> None:
        told.append(number)
        for process in processes:
            process.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, tell)
    try:
        yield
    finally:
        signal.signal(number, before)


def _run(work: Callable[[], None], errors: SimpleQueue, meeting: Barrier, board: ctypes.Array) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leaves `meet` in order, which the others rely on
    Here.meeting, Here.board = meeting, np.frombuffer(board).reshape(2, -1, BOARD)
    try:
        work()
    except InputError as error:
        errors.put(str(error))
        raise SystemExit(2) from None
    except threading.BrokenBarrierError:  # another one has ended, and says why
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _end_with_parent() -> None:
    """A command that is killed cannot stop its processes itself."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Inside, variables have these values; None = are not set."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
