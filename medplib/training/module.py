"""The LightningModule of every stage. It knows parts and objectives, no architecture."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from medplib.errors import InputError
from medplib.lineage import Lineage, SourceStamp, save_checkpoint, sha256_file
from medplib.models.build import input_spec
from medplib.ranks import world_size
from medplib.tokens import SEG
from medplib.training.assemble import assemble
from medplib.training.feature_cache import keep_features
from medplib.training.lora import add_lora, merged
from medplib.training.losses import LossTerms
from medplib.training.objectives import OBJECTIVES
from medplib.training.optim import build_optimizer, rate_factor
from medplib.training.previews import mask_previews
from medplib.training.ranks import over_all_ranks
from medplib.training.stage import StageConfig
from medplib.training.trainable import cast_frozen, check_objective, choose_trained
from medplib.training.validation import ValidationScores
from medplib.types import Batch, GroundingOutput, InputSpec

log = logging.getLogger("medplib.training")


class StageModule(L.LightningModule):
    """Trains one stage.

    Args:
        stage: what to start from, what to train, what to minimise.
    """

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.stage = stage
        built = assemble(stage)
        self.model, self.tokenizer, self.config, self.parents = built.model, built.tokenizer, built.config, built.parents
        check_objective(self.model, stage)
        self.objective = OBJECTIVES[stage.objective]
        if stage.lora is not None:
            add_lora(self.model, stage.lora)
        self.trained = choose_trained(self.model, stage, seg_id=self.tokenizer.convert_tokens_to_ids(SEG))
        if stage.frozen_dtype != "float32":
            cast_frozen(self.model, getattr(torch, stage.frozen_dtype))
        if stage.checkpointing and self.model.language is not None:
            self.model.language.recompute_layers(stage.recomputed)
        if stage.compile and self.model.language is not None:
            self.model.language.compile_layers()
        self.scores, self.previewed = ValidationScores(), False
        self.started = time.perf_counter()

    def input_spec(self) -> InputSpec:
        """How this stage wants to be fed: no grounder pixels where nothing reads them."""
        return input_spec(self.config, with_sam=self.model.grounder is not None)

    def on_fit_start(self) -> None:
        """Weights of mixed types only work where autocast brings them together; features of a frozen encoder are looked up."""
        if self.stage.frozen_dtype != "float32" and self.trainer.precision != "bf16-mixed":
            raise InputError(
                where="trainer.precision", expected="bf16-mixed with stage.frozen_dtype bfloat16", found=self.trainer.precision
            )
        if world_size() > 1:
            self.model.run_every_part()
        if folder := self.stage.feature_cache:
            precision = f"{self.trainer.precision} {self.stage.frozen_dtype}"
            room = self.stage.feature_cache_gb
            self.features = keep_features(self.model, Path(folder), gigabytes=room, precision=precision, where="stage.feature_cache")

    def on_fit_end(self) -> None:
        """Say what the cache was good for."""
        if self.stage.feature_cache:
            log.info("features of images: %d found in %s, %d encoded", self.features.found, self.features.folder, self.features.made)

    def configure_optimizers(self) -> dict:
        """One group per learning rate; warm-up and decay over all steps."""
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
        optimizer = build_optimizer(self.stage.optim, parameters, dtype=dtype)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(self.stage.optim, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip to the stage's norm (the trainer's own option is left alone).

        Not by Lightning, which refuses fused optimisers under autocast for the sake of a loss scaler that bfloat16 does not need.
        """
        if self.stage.optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], self.stage.optim.grad_clip)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what is random inside a step a function of (seed, step), so that a resumed run goes on as if never stopped."""
        torch.manual_seed(self.stage.seed * 1_000_003 + self.global_step)

    def on_train_start(self) -> None:
        """Also where a run goes on inside an epoch, whose start it does not see."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Parts that do not train keep their statistics (batch norm) and their dropout off."""
        for name, module in self.model.named_modules():
            parameters = list(module.parameters(recurse=True))
            if name and parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        if self.stage.checkpointing and self.model.language is not None:
            for layer in self.model.language.decoder.layers:
                layer.training = True  # recomputed only then; what is inside (dropout) stays as it is

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """One step; every term is logged by name, in the steps that are."""
        terms, total = self.model.within(lambda: self._terms(batch))
        every = self.trainer.log_every_n_steps
        if not every or (self.global_step + 1) % every:
            return total  # what is logged in other steps nobody sees, and it costs a fiftieth of a small one
        together = world_size() > 1
        shown = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(shown, batch_size=len(batch.input_ids), sync_dist=together)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.input_ids), sync_dist=together)
        for group in self.trainer.optimizers[0].param_groups:
            self.log(f"lr/{group['name']}", group["lr"])
        return total

    def _terms(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        seen = self.objective(self.model, batch, self.stage.losses)
        terms = over_all_ranks(seen.terms, seen.counts)
        return terms, terms.total(self.stage.losses)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What is drawn at random (points, boxes) is the same in every validation, and all ranks agree on which parts run."""
        torch.manual_seed(self.stage.seed * 1_000_003 + batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss terms, and for conversations the rates at which `<SEG>` is predicted and how the router shares its tokens."""
        scores = ValidationScores() if self.trainer.datamodule.is_filling(batch_idx) else self.scores
        self.model.within(lambda: self._validate(batch, scores))

    def _validate(self, batch: Batch, scores: ValidationScores) -> None:
        seen = self.objective(self.model, batch, self.stage.losses)
        scores.add_terms(seen, batch)
        scores.add_masks(batch, seen.grounding)
        if seen.output is not None:
            seg_id = self.tokenizer.convert_tokens_to_ids(SEG)
            scores.add_output(batch, seen.output, seg_id=seg_id, expert_names=self.model.language.expert_names)
        if seen.grounding is not None and len(batch.names) and not self.previewed:
            self._log_previews(batch, seen.grounding)

    def _log_previews(self, batch: Batch, grounding: GroundingOutput) -> None:
        """Show the first grounded batch of a validation run, where the logger takes images."""
        self.previewed = True
        sheet = mask_previews(batch, grounding)
        if sheet is not None and isinstance(self.logger, TensorBoardLogger):
            self.logger.experiment.add_image("val/masks", sheet, self.global_step, dataformats="HWC")

    def on_validation_epoch_end(self) -> None:
        """Log what was gathered."""
        experts = self.model.language.expert_names if self.model.language is not None else ()
        for name in self.scores.starved(experts):
            log.warning("expert '%s' gets almost no token of any task: the router may have collapsed (losses.router balances it)", name)
        figures, self.previewed = self.scores.finish(), False
        self.log_dict({f"val/{name}": value for name, value in figures.items()}, rank_zero_only=True)
        self.val_figures = figures
        log.info("step %d  %s", self.global_step, "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def write(self, *, sources: dict[str, int], run_sha256: str = "", weights: dict[str, torch.Tensor] | None = None) -> Lineage:
        """Merge the adapters and write the stage's checkpoint folder.

        Args:
            sources: data file -> number of records, for the lineage.
            run_sha256: hash of the configuration that was run.
            weights: of the model, where a strategy holds them elsewhere; None = as they are here.
        """
        rows = self.model.language.rows if self.model.language is not None else None
        lineage = Lineage(
            stage=self.stage.name,
            trained=self.trained,
            steps=self.global_step,
            run_sha256=run_sha256,
            seed=self.stage.seed,
            seconds=round(time.perf_counter() - self.started, 1),
            precision=str(self.trainer.precision),
            ranks=self.trainer.world_size,
            sources=tuple(SourceStamp(Path(f).name, sha256_file(Path(f)), n) for f, n in sources.items()),
            metrics={k: round(float(v), 6) for k, v in getattr(self, "val_figures", {}).items()},
            parents=self.parents,
        )
        return save_checkpoint(
            Path(self.stage.output),
            tensors=merged(self.model.state_dict() if weights is None else weights, self.stage.lora, rows=rows.ids if rows else ()),
            config={"model": asdict(self.config)},
            save_tokenizer=self.tokenizer.save_pretrained,
            lineage=lineage,
        )
