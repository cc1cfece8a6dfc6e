"""`python -m medplib.fit --config configs/demo/stage1.yaml`: train one stage (LightningCLI; later files and flags override).

`--then` separates stages that one command trains one after the other, which saves what starting a process costs. `--ranks N` lets N
processes of this machine train them together; a stage with `--rank K` is trained by one of them while the others go on with theirs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from medplib.errors import InputError, run_command
from medplib.launch import own_place
from medplib.schedule import run

if TYPE_CHECKING:
    from medplib.data.cache import FileCache

log = logging.getLogger("medplib.fit")
LOGS = "logs"
"""Where the curves of all stages are, below the logger's `save_dir`."""


def _quieten() -> None:
    """Keep the screen for progress, figures and errors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # figures of validation are added up over ranks before they are logged
    warnings.filterwarnings("ignore", message=".*(num_workers|many workers|LightningCLI's args|number of training batches).*")
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _cli(arguments: list[str] | None):
    from jsonargparse import ArgumentError
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.utilities import rank_zero_only

    from medplib.data.datamodule import DataModule
    from medplib.training.module import StageModule
    from medplib.training.resume import ResumeOptions

    for name in ("lightning.pytorch", "lightning.fabric"):  # importing it set them to talk
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("medplib").setLevel(logging.WARNING if rank_zero_only.rank else logging.INFO)  # the first rank speaks for all

    class StageCLI(LightningCLI):
        """Adds what belongs to a run, not to a model, its data or its trainer."""

        def add_arguments_to_parser(self, parser) -> None:
            parser.add_class_arguments(ResumeOptions, "resume")
            parser.add_argument(
                "--if_finished",
                type=str,
                default="again",
                choices=["again", "skip"],
                help="skip = do nothing when the output is up to date",
            )
            parser.add_argument(
                "--native_bfloat16",
                type=bool,
                default=False,
                help="trainer.precision bf16-mixed where the processor multiplies bfloat16 itself, 32-true elsewhere",
            )
            parser.set_defaults(
                {
                    "trainer.logger": {
                        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                        "init_args": {"save_dir": "runs", "name": LOGS},
                    },
                    "trainer.use_distributed_sampler": False,
                    "trainer.num_sanity_val_steps": 0,
                    "trainer.enable_model_summary": False,
                    "trainer.enable_checkpointing": False,
                    "trainer.log_every_n_steps": 10,
                }
            )

        def instantiate_classes(self) -> None:
            """Build only when there is something to do."""
            if self.config.native_bfloat16:
                self.config.trainer.precision = _native_precision(self.config.trainer)
            if own_place() is not None and _accelerated(self.config.trainer):
                self.config.trainer.devices = [own_place()]
            self.fingerprint = _fingerprint(self.config)
            _give_folder(self.config.trainer.logger, Path(self.config.model.stage.output).resolve())
            self.done = self.config.if_finished == "skip" and _up_to_date(self.config, self.fingerprint)
            if not self.done:
                super().instantiate_classes()

    try:
        return StageCLI(
            StageModule,
            DataModule,
            run=False,
            args=arguments,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "parser_mode": "yaml"},
        )
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            where="configuration", expected="known keys and valid values (python -m medplib.fit --help)", found=" ".join(lines)
        ) from None


def _give_folder(logger, output: Path) -> None:
    """Curves are named like the stage's output, `runs/logs/demo/stage4_moe/version_0`: stages that train beside each other, and count the
    versions there at once, must not choose the same.
    """
    if getattr(logger, "class_path", "").endswith("TensorBoardLogger") and logger.init_args.name == LOGS:
        logger.init_args.name = str(Path(LOGS, output.parent.name, output.name))


def _native_precision(trainer) -> str:
    """What `--native_bfloat16 true` means for this trainer on this machine, said in a line.

    Raises:
        InputError: a precision is asked for besides.
    """
    from medplib.models.precision import multiplies_bfloat16

    if trainer.precision is not None:
        raise InputError(
            where="trainer.precision", expected="none beside native_bfloat16", found=str(trainer.precision), remedy="leave one out"
        )
    precision = "bf16-mixed" if multiplies_bfloat16("cuda" if _accelerated(trainer) else "cpu") else "32-true"
    log.info(
        "trainer.precision %s: this processor %s",
        precision,
        "multiplies bfloat16" if precision == "bf16-mixed" else "multiplies no bfloat16",
    )
    return precision


def _accelerated(trainer) -> bool:
    import torch

    return trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _fingerprint(config, *, without: tuple[str, ...] = ()) -> str:
    """SHA-256 of what decides the weights: stage, training data (but for the keys in `without`), number of steps."""
    plain = json.loads(json.dumps(config.as_dict(), default=str))
    for key in ("val", "val_limit", "workers", "cache_mb", *without):
        plain["data"].pop(key, None)
    trainer = {
        k: plain["trainer"].get(k) for k in ("max_steps", "max_epochs", "precision", "accumulate_grad_batches", "limit_train_batches")
    }
    return hashlib.sha256(json.dumps([plain["model"], plain["data"], trainer], sort_keys=True).encode()).hexdigest()


def _run_fingerprint(configuration: str, parents: dict, files: dict[str, int]) -> str:
    """SHA-256 of what a resume point must agree with: configuration, parents, data files."""
    from medplib.lineage import sha256_file

    found = {
        "configuration": configuration,
        "parents": {role: lineage.weights_sha256 for role, lineage in parents.items()},
        "data": {file: sha256_file(Path(file)) for file in files},
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _up_to_date(config, fingerprint: str) -> bool:
    """Whether the output folder was written by this very configuration from the parents that lie there now."""
    from medplib.lineage import LINEAGE, load_checkpoint, sha256_file

    stage = config.model.stage
    if not (Path(stage.output) / LINEAGE).exists():
        return False
    lineage = load_checkpoint(stage.output, stage=stage.name, role="output").lineage
    if lineage.run_sha256 != fingerprint:
        return False
    recorded_data = {(source.file, source.sha256) for source in lineage.sources}  # files of several folders may share a name
    if any(not Path(file).exists() or (Path(file).name, sha256_file(Path(file))) not in recorded_data for file in config.data.train):
        return False
    init = stage.init
    folders = {"base": init.base, "token_rows": init.token_rows}
    folders |= {f"part:{k}": v for k, v in (init.parts or {}).items()} | {f"expert:{k}": v for k, v in (init.experts or {}).items()}
    for role, parent in folders.items():
        if parent is None:
            continue
        recorded = lineage.parents.get(role)
        if recorded is None or load_checkpoint(parent.path, role=role).lineage.weights_sha256 != recorded.weights_sha256:
            return False
    return True


def main(arguments: list[str] | None = None, *, files: FileCache | None = None) -> bool:
    """Parse, train, write the checkpoint folder of the stage.

    Returns:
        Whether the process was told to stop so late that the stage was finished instead.

    Args:
        arguments: options; those of the command line when left out.
        files: decoded for an earlier stage, to be looked up and added to.
    """
    from medplib.training.resume import ResumeOptions, ResumePoints, points_folder
    from medplib.training.strategy import SameGradients, WholeWeights, check_strategy

    _quieten()
    gc.unfreeze()  # what the stage before has left, before there is a second model
    gc.collect()
    cli = _cli(arguments)
    if cli.done:
        log.info("stage '%s' is up to date: %s", cli.config.model.stage.name, cli.config.model.stage.output)
        return False
    module, data = cli.model, cli.datamodule
    data.connect(tokenizer=module.tokenizer, spec=module.input_spec(), files=files)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    log.info(
        "stage '%s': %.2f M of %.2f M parameters train (%s)", module.stage.name, trainable / 1e6, total / 1e6, ", ".join(module.trained)
    )
    gc.collect()
    gc.freeze()  # records are many small objects that stay: walking them again and again costs a tenth of a small step
    resume, trainer = ResumeOptions(**cli.config.resume.as_dict()), cli.trainer
    check_strategy(trainer.strategy)
    points, whole = points_folder(module.stage.output), WholeWeights()
    trainer.callbacks += [whole, SameGradients()]
    fingerprint = _run_fingerprint(_fingerprint(cli.config, without=("batch_size",)), module.parents, data.counts)
    samples = data.batch_of_rank(trainer.world_size) * trainer.world_size
    stopper = ResumePoints(points, resume, fingerprint=fingerprint, samples=samples)
    trainer.callbacks.append(stopper)
    trainer.fit(module, datamodule=data)
    if cli.trainer.interrupted:
        raise SystemExit(130)
    if trainer.is_global_zero:
        lineage = module.write(sources=data.counts, run_sha256=cli.fingerprint, weights=whole.weights)
        figures = "  ".join(f"{k} {v:.4f}" for k, v in lineage.metrics.items())
        shutil.rmtree(points, ignore_errors=True)
        log.info("wrote %s (%d steps, %.0f s)  %s", module.stage.output, lineage.steps, lineage.seconds, figures)
    trainer.strategy.barrier()  # the next stage of this process begins with what rank 0 has just written
    return stopper.told_to_stop


@cache
def _decoded() -> FileCache:
    """The decoded files of this process, as the stages that it trains share them."""
    from medplib.data.cache import FileCache

    return FileCache(0)  # every stage gives it its own size


def _train(arguments: list[str]) -> bool:
    """One stage in this process."""
    import torch

    # Values below 1e-38 (decayed Adam moments, saturated sigmoids) make x86 arithmetic many times slower and mean nothing here. Set before
    # the first parallel region, because threads inherit it, and here only, because it holds for the whole process.
    torch.set_flush_denormal(True)
    return main(arguments, files=_decoded())


def _command() -> None:
    """All stages of the command line."""
    run(sys.argv[1:], _train)


if __name__ == "__main__":
    run_command(_command)
