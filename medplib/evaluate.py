"""`python -m medplib.evaluate --checkpoint DIR --config configs/eval/demo.yaml --out DIR`: figures, controls and a report."""

from __future__ import annotations

import gc
import logging
from functools import partial
from pathlib import Path
from typing import Literal

from medplib.errors import InputError, run_actions, run_command
from medplib.launch import launched, local_rank, start


def evaluate(
    checkpoint: Path,
    out: Path,
    suite: Path | None = None,
    data: list[Path] | None = None,
    limit: int = 0,
    batch_size: int = 16,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    ranks: int = 1,
) -> None:
    """Evaluate a checkpoint.

    Args:
        checkpoint: folder written by `python -m medplib.fit`.
        out: folder for metrics.json, report.html and predictions; a run that was interrupted goes on there.
        suite: YAML of a whole evaluation (see configs/eval).
        data: record files, instead of a suite: grounding questions are scored by both protocols, all others as text.
        limit: at most so many records per set; 0 = all.
        batch_size: conversations per forward (with `data`).
        device: auto (the accelerator where there is one), cpu, cuda or cuda:NUMBER.
        dtype: bfloat16 halves the memory; for accelerators.
        ranks: so many processes of this machine share the questions, each with an accelerator of its own where there are any; under
            torchrun its processes do. Answers and figures are those of one process.
    """
    if ranks < 1:
        raise InputError(where="--ranks", expected="at least 1", found=str(ranks))
    work = partial(_evaluate, checkpoint, out, suite, data, limit, batch_size, device, dtype)
    if ranks > 1 and not launched():
        start(work, count=ranks)
    else:
        work()


def _evaluate(
    checkpoint: Path, out: Path, suite: Path | None, data: list[Path] | None, limit: int, batch_size: int, device: str,
    dtype: Literal["float32", "bfloat16"],
) -> None:  # fmt: skip
    """What each rank does; the first one writes and prints."""
    from medplib.evaluation.gallery import GalleryViewer
    from medplib.evaluation.page import evaluation_page
    from medplib.evaluation.suite import Suite
    from medplib.evaluation.suite_config import suite_of_files, suite_of_yaml
    from medplib.inference.device import choose_device
    from medplib.ranks import joined, rank

    config = suite_of_files(data or [], limit=limit, batch_size=batch_size) if suite is None else suite_of_yaml(suite, limit=limit)
    with joined():
        first, viewer = rank() == 0, GalleryViewer()
        logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
        runner = Suite(checkpoint, config, out, device=choose_device(device, local_rank=local_rank()), dtype=dtype)
        gc.collect()
        gc.freeze()  # models and libraries stay: nothing in them is to be freed, and walking them takes a fiftieth of the time
        try:
            figures, galleries = runner.run(viewer), viewer.galleries()
        finally:
            gc.unfreeze()
        if not first:
            return
        evaluation_page(out / "report.html", figures, galleries, runner.predictor.checkpoint.lineage)
    width = max(len(f.name) for f in figures)
    for f in figures:
        if f.name.count(".") <= 2 and ".upstream" not in f.name and "by_" not in f.name:
            interval = "" if f.figure.ci95 is None else f"[{f.figure.ci95[0]:.3f}, {f.figure.ci95[1]:.3f}]"
            print(f"{f.name:{width}}  {f.figure.value:8.3f}  {interval:16}  n {f.figure.n}")


def main() -> None:
    """Parse the command line."""
    run_actions(evaluate)


if __name__ == "__main__":
    run_command(main)
