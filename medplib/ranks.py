"""Several processes that do one thing together: who this one is, what all of them found, how they are started on one machine."""

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
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from medplib.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a rank waits for the slowest one: a set of long answers at full size takes hours."""
GRACE = 60.0
"""Seconds that ranks have to end by themselves when another one has broken off."""
_NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


_BOARD = 64
"""So many values of each rank the others of `start` can read without asking."""


class _Here:
    """What this process is besides one of a group."""

    meeting: Barrier | None = None
    board: np.ndarray | None = None
    """(2, ranks, _BOARD) float64 that all processes of `start` see. Who writes into one half has met the others behind the other one, so
    nobody still reads what he writes over."""
    half: int = 0
    alone: int | None = None
    """Which of the processes this is, where it works by itself."""


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and _Here.alone is None


def world_size() -> int:
    """Number of ranks; 1 for a process alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of the ranks this process is, from 0; 0 for a process alone."""
    return distributed.get_rank() if _together() else 0


def gathered(mine: Sequence[T]) -> list[T]:
    """What all ranks have, in the order of the ranks, on each of them; every rank must call it."""
    if world_size() == 1:
        return list(mine)
    found: list[Sequence[T]] = [()] * world_size()
    distributed.all_gather_object(found, mine)
    return [item for part in found for item in part]


def launched() -> bool:
    """Whether this process was started as one of several (torchrun sets these variables, and `start` does)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of the ranks of this machine this process is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that were launched together know each other; nothing for a process alone."""
    if not launched():
        yield
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)  # words and scores travel, not tensors of a device
    try:
        yield
    finally:
        distributed.destroy_process_group()


def meet() -> None:
    """Wait for the other processes of `start`, however long they take; nothing for a process alone."""
    if _Here.meeting is not None:
        _Here.meeting.wait()


def can_meet() -> bool:
    """Whether this process is one of those that `start` has started, and now together with them."""
    return _Here.meeting is not None and _Here.alone is None


def summed(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of a few values (n,), on each of them, as a new tensor; every rank must call it.

    CPU processes of `start` write on a board and meet, which costs a tenth of a millisecond; a collective over sockets waits for a thread
    that first has to get one of the cores that the ranks keep busy.
    """
    few = len(values) <= _BOARD
    if _Here.board is None or not few or values.device.type != "cpu" or not _together():
        everyone = values.clone()
        if world_size() > 1:
            distributed.all_reduce(everyone)
        return everyone
    _Here.half = half = 1 - _Here.half
    _Here.board[half, rank(), : len(values)] = values.detach().numpy()
    meet()
    return torch.from_numpy(_Here.board[half, :, : len(values)].sum(axis=0)).to(values.dtype)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does something by itself, whatever others were started beside it."""
    _Here.alone = local_rank()
    try:
        with _environment(dict.fromkeys(_NAMES)):
            yield
    finally:
        _Here.alone = None


def own_place() -> int | None:
    """Which of the processes of `start` this one is, inside `alone`; None elsewhere. Its accelerator has the same number."""
    return _Here.alone


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
    errors, meeting, board = context.SimpleQueue(), context.Barrier(count), context.RawArray("d", 2 * count * _BOARD)
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
    _Here.meeting, _Here.board = meeting, np.frombuffer(board).reshape(2, -1, _BOARD)
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
