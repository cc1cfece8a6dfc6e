"""Several processes that do one thing together: who this one is, what all of them found, how they are started on one machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from threading import Thread
from typing import TypeVar

from torch import distributed

from medplib.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a rank waits for the slowest one: a set of long answers at full size takes hours."""


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


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


def start(work: Callable[[], None], *, count: int) -> None:
    """Call `work` in `count` new processes of this machine, which share its cores, and wait for all of them.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        count: how many.

    Raises:
        InputError: that of the first process that met one; the others are stopped.
        RuntimeError: a process ended otherwise; its own message stands above.
    """
    context = get_context("spawn")
    errors = context.SimpleQueue()
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    processes: list[BaseProcess] = []
    for index in range(count):
        with _environment({**shared, "RANK": str(index), "LOCAL_RANK": str(index)}):  # read when a new process imports torch
            processes.append(context.Process(target=_run, args=(work, errors), daemon=True))
            processes[-1].start()
    try:
        _wait(processes)
        if not errors.empty():
            raise InputError(errors.get())
        if bad := [process.exitcode for process in processes if process.exitcode]:
            raise RuntimeError(f"a rank ended with exit code {bad[0]}")
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _wait(processes: Sequence[BaseProcess]) -> None:
    """Until all have ended, or one badly: the others would wait for it for ever."""
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        for sentinel in connection.wait(list(waiting)):
            process = waiting.pop(sentinel)
            process.join()
            if process.exitcode:
                return


def _run(work: Callable[[], None], errors: SimpleQueue) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        work()
    except InputError as error:
        errors.put(str(error))
        raise SystemExit(2) from None


def _end_with_parent() -> None:
    """A command that is killed cannot stop its processes itself."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
