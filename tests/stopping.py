"""`python -m medplib.fit`, told to stop behind step $STOP_AT; what it goes on from must arrive whole.

Step and loss of every step are written to $LOSSES. A script of its own, because every rank imports what the command was started with
and must find the same changes there.
"""

import os
from pathlib import Path

import smooth  # noqa: F401  (the mask decoder's activation)

# isort: split
import torch

from medplib.errors import run_command
from medplib.fit import _command
from medplib.training import resume
from medplib.training.resume import ResumePoints

end, take = ResumePoints.on_train_batch_end, resume.take_states


def taken(strategy, model, optimizer, tensors):
    """Whatever the ranks took must be the point's own bits when it is put together again."""
    take(strategy, model, optimizer, tensors)
    whole = resume.whole_states(strategy, model, optimizer)
    if strategy.is_global_zero:
        odd = [n for n, t in tensors.items() if not torch.equal(t, whole[n].cpu()) and not _means_nothing(n, tensors)]
        assert not odd, f"{len(odd)} tensors changed on their way, such as {odd[0]}"


def _means_nothing(name, tensors):
    """The count of steps of a parameter whose moments are still zeros."""
    return name.startswith("optimizer.step.") and not tensors[name.replace("step", "exp_avg", 1)].any()


def told(self, trainer, *arguments):
    """Stands for a scheduler's signal; what a step logs is shown only behind it, which a stopped run does not reach."""
    self.told_to_stop |= trainer.global_step == int(os.environ["STOP_AT"])
    loss = float(trainer.callback_metrics["train/loss"])
    if trainer.is_global_zero:
        with Path(os.environ["LOSSES"]).open("a") as file:
            file.write(f"{trainer.global_step} {loss!r}\n")
    end(self, trainer, *arguments)


resume.take_states, ResumePoints.on_train_batch_end = taken, told
if __name__ == "__main__":
    run_command(_command)
