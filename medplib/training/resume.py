"""Resume points of a stage: exact, atomic, small.

A point is one safetensors file with what the stage changes (trained weights, buffers, optimiser states; whole tensors by name, whatever
the strategy) and, as metadata, where the run stands. What is random in a step is a function of (seed, step) and the training stream one
of (seed, position), so nothing else is needed to go on as if never stopped. The file appears under its name only when all of it is on the
disk; the name holds its hash.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import safe_open

from medplib.errors import InputError
from medplib.lineage import sha256_file
from medplib.tensorfiles import StoredTensor, write_safetensors
from medplib.training.position import Position, go_on_at, position_of
from medplib.training.states import take_states, whole_states

log = logging.getLogger("medplib.training")

_NAME = re.compile(r"^step-(\d{8})-([0-9a-f]{16})\.safetensors$")
_META = "run"


@dataclass(frozen=True)
class ResumeOptions:
    """When to write resume points.

    Args:
        every: optimiser steps between two points; 0 writes none, except when the run is asked to stop.
        keep: how many of the newest stay.
        fresh: start at the first step, whatever points there are.
    """

    every: int = 0
    keep: int = 2
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise InputError(where="resume", expected="every >= 0 and keep >= 1", found=f"every {self.every}, keep {self.keep}")


def points_folder(output: str | Path) -> Path:
    """Where the points of a stage with this output folder lie."""
    output = Path(output)
    return output.with_name(f".{output.name}.resume")


class ResumePoints(L.Callback):
    """Writes points, starts from the newest good one, and stops in order when the process is told to (SIGTERM).

    Args:
        folder: see `points_folder`.
        options: see there.
        fingerprint: of the run; points of another configuration, other data or parents are refused.
        samples: of a batch over all ranks; points of other batches are refused, because their batches and epochs end elsewhere.
    """

    def __init__(self, folder: Path, options: ResumeOptions, *, fingerprint: str, samples: int) -> None:
        self.folder, self.options, self.fingerprint, self.samples = folder, options, fingerprint, samples
        self.told_to_stop = False
        self._stepped = 0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Go on from the newest good point, if there is one; rank 0 chooses it for all."""
        chosen = None
        if trainer.is_global_zero:
            if self.options.fresh:
                shutil.rmtree(self.folder, ignore_errors=True)
            chosen = newest_good(self.folder)
        chosen = trainer.strategy.broadcast(chosen)
        if chosen is None:
            return
        if not chosen.exists():
            raise InputError(where=chosen, expected="the resume point on a disk that all ranks see", found="no such file on this machine")
        with safe_open(chosen, framework="pt") as file:
            meta = json.loads(file.metadata()[_META])
            self._check(chosen, meta, ranks=trainer.world_size)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        optimizer = trainer.optimizers[0]
        take_states(trainer.strategy, module.model, optimizer, tensors)
        for group, rate in zip(optimizer.param_groups, meta["rates"], strict=True):
            group["lr"] = rate
        for config, saved in zip(trainer.lr_scheduler_configs, meta["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        go_on_at(trainer, Position(**meta["position"]))
        self._stepped = trainer.global_step
        log.info("goes on at step %d (%s)", trainer.global_step, chosen.name)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take over from Lightning, whose own handler ends a run between two steps without a point, and with exit code 0."""
        self.told_to_stop |= trainer.received_sigterm
        trainer._signal_connector.received_sigterm = False
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # its round of all ranks before each batch; ours is behind it
        signal.signal(signal.SIGTERM, self._stop)

    def _check(self, point: Path, meta: dict[str, Any], *, ranks: int) -> None:
        if meta["fingerprint"] != self.fingerprint:
            raise InputError(where=point, expected="a resume point of this configuration, these data and parents",
                             found="another one", remedy="start afresh with --resume.fresh true, or restore what changed")  # fmt: skip
        if meta["samples"] != self.samples:
            each, rest = divmod(meta["samples"], ranks)
            remedy = f"go on with a number of ranks that divides {meta['samples']}" if rest else f"make data.batch_size {each} on each rank"
            raise InputError(where=point, expected=f"batches of {meta['samples']} samples over all ranks",
                             found=f"{self.samples} on {ranks}", remedy=remedy)  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write where a step has just ended and a point is due, or the run shall stop."""
        step = trainer.global_step
        if step == self._stepped:
            return  # gradients are still being gathered: what is gathered so far would be lost
        self._stepped = step
        stop = trainer.strategy.reduce_boolean_decision(self.told_to_stop, all=False)  # ranks hear of it in different steps
        if step >= trainer.estimated_stepping_batches:
            return  # all that is left is to write the checkpoint
        if (self.options.every and step % self.options.every == 0) or stop:
            self._write(trainer, module)
            trainer.strategy.barrier()
        if stop:
            log.info("stopped at step %d; started again, the stage goes on there", step)
            raise SystemExit(128 + signal.SIGTERM)

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        tensors = whole_states(trainer.strategy, module.model, optimizer)
        if not trainer.is_global_zero:
            return
        meta = {
            "position": asdict(position_of(trainer)),
            "rates": [group["lr"] for group in optimizer.param_groups],
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "fingerprint": self.fingerprint,
            "samples": self.samples,
        }
        try:
            write_point(self.folder, tensors, meta, step=trainer.global_step)
        except OSError as error:  # a full disk must not end a run whose last point is good
            log.error("resume point of step %d not written (%s); older ones stay, training goes on", trainer.global_step, error.strerror)
            return
        for old in _points(self.folder)[: -self.options.keep]:
            old.unlink(missing_ok=True)

    def _stop(self, number: int, frame: object) -> None:
        self.told_to_stop = True


def write_point(folder: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any], *, step: int) -> Path:
    """Write one point: temporary file, flushed to the disk, then renamed; the folder is flushed last.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=folder)
    os.close(handle)
    part = Path(name)
    try:
        write_safetensors(part, {k: StoredTensor.of(v) for k, v in sorted(tensors.items())}, metadata={_META: json.dumps(meta)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        final = folder / f"step-{step:08d}-{sha256_file(part)[:16]}.safetensors"
        part.rename(final)
        _flush(folder)
        return final
    finally:
        part.unlink(missing_ok=True)


def newest_good(folder: Path) -> Path | None:
    """The newest point whose bytes have the hash in its name; every damaged one is named in a line. None without any."""
    for stale in folder.glob(".part-*") if folder.is_dir() else ():
        stale.unlink(missing_ok=True)  # of a process that died while it wrote
    for point in reversed(_points(folder)):
        if sha256_file(point)[:16] == _NAME.match(point.name)[2]:
            return point
        log.warning("%s is damaged (its hash is another one); the point before is used", point)
    return None


def _points(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _NAME.match(p.name)) if folder.is_dir() else []


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
