"""Where a run stands between two optimiser steps, and how Lightning's loops are told to go on there.

Lightning's own restart counters are not kept in a point: a loop that restarts behind the last batch of an epoch does not count the epoch
that it then begins, so a run that is stopped at two such places takes one epoch for another and trains on its samples twice
(`_FitLoop.on_advance_start` in lightning 2.6). They are made anew from four numbers instead, as a run that was never stopped has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L


@dataclass(frozen=True)
class Position:
    """Counts of what is done.

    Args:
        step: optimiser steps.
        batches: batches that a rank has trained on, over all epochs.
        epoch: whole epochs.
        inside: batches of the epoch that follows; 0 at its start.
    """

    step: int
    batches: int
    epoch: int
    inside: int


def position_of(trainer: L.Trainer) -> Position:
    """Where `trainer` stands; right in `on_train_batch_end`, at a batch that ended with an optimiser step."""
    progress, epoch = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop.epoch_progress.current.processed
    batches, inside = progress.total.ready, progress.current.ready
    at_end = progress.is_last_batch or inside >= trainer.num_training_batches
    return Position(trainer.global_step, batches, epoch + 1, 0) if at_end else Position(trainer.global_step, batches, epoch, inside)


def go_on_at(trainer: L.Trainer, position: Position) -> None:
    """Let the loops and the training stream begin at `position`; right in `on_fit_start`."""
    loop, at = trainer.fit_loop, position
    begun = int(at.inside > 0)  # an epoch, and a batch whose end Lightning counts itself when it restarts
    for epochs in (loop.epoch_progress.total, loop.epoch_progress.current):
        epochs.ready = epochs.started = at.epoch + begun
        epochs.processed = epochs.completed = at.epoch
    progress = loop.epoch_loop.batch_progress
    for counter, done in ((progress.total, at.batches), (progress.current, at.inside)):
        counter.ready = counter.started = counter.processed = done
        counter.completed = done - begun
    optimizer = loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    for counter in (optimizer.step.total, optimizer.zero_grad.total, loop.epoch_loop.scheduler_progress.total):
        counter.ready = counter.completed = at.step
    optimizer.zero_grad.total.started = at.step
    loop.epoch_loop._batches_that_stepped = at.step - begun
    loop.load_state_dict(loop.state_dict())  # says to every loop that it goes on
    loop.restarting = bool(begun)  # at the start of an epoch there is nothing to restart
    trainer.datamodule.go_on_at(epoch=at.epoch, batches=at.inside)
    # With max_epochs the loader was built to count steps, and its processes may have begun at the first sample: it is built again.
    loop._combined_loader = None
