"""A stage is data: what it starts from, what trains, what is minimised. Stages of MedPLIB: arXiv 2412.09278, section on training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medplib.errors import InputError
from medplib.models.build import ModelConfig
from medplib.models.moe import MoEConfig
from medplib.training.losses import LossWeights
from medplib.training.parts import check_parts


@dataclass(frozen=True)
class Parent:
    """A checkpoint folder and the stage that must have written it. `part`: "grounder", for a vision encoder that copies the grounder's."""

    path: str
    stage: str
    part: str | None = None


@dataclass(frozen=True)
class InitConfig:
    """Where the weights come from.

    Args:
        base: the whole model, unless a line below says otherwise.
        parts: top-level part (grounder, names, seg_projector, contrast, ...) -> the checkpoint it is taken from.
        experts: expert name -> the dense checkpoint whose MLPs become that expert.
        token_rows: checkpoint that the embedding and head rows of `<SEG>` are taken from.
        fresh: parts that start at random; a part that comes from nowhere and is not listed is an error.
    """

    base: Parent | None = None
    parts: dict[str, Parent] = field(default_factory=dict)
    experts: dict[str, Parent] = field(default_factory=dict)
    token_rows: Parent | None = None
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (peft) on the linear layers of the language model whose names end in one of `targets`; merged at stage end."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and Muon where asked for, with linear warm-up and a decay to zero.

    Args:
        lr: learning rate of everything that `lr_by_part` does not name (part or group -> rate).
        betas, weight_decay, grad_clip: as usual; biases and norms are decayed too, as published.
        warmup: fraction of all steps.
        muon: parts whose weight matrices and convolutions follow Muon (see training/optim.py) instead of AdamW.
        muon_lr: learning rate of those, whatever `lr_by_part` says.
        muon_iterations: how far the momentum of those is orthogonalised; fewer are cheaper and leave weak directions weaker.
        schedule: "linear" or "cosine" decay, or "constant".
    """

    lr: float = 1e-3
    lr_by_part: dict[str, float] = field(default_factory=dict)
    muon: tuple[str, ...] = ()
    muon_lr: float = 0.02
    muon_iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    warmup: float = 0.03
    schedule: Literal["linear", "cosine", "constant"] = "linear"


@dataclass(frozen=True)
class StageConfig:
    """One stage.

    Args:
        name: written into the lineage; children name it to be sure of their parent.
        output: checkpoint folder to write.
        objective: "conversation" (stages I to IV), "contrastive", "dense" or "promptable" (stage 0).
        init: where weights come from.
        model: sizes, only without a base.
        tokenizer: tokenizer folder, only without a base.
        moe: experts to install.
        train: parts that train in full.
        lora: adapters to train besides.
        train_token_rows: train the `<SEG>` rows of embedding and head, and no other row.
        losses: weights of the loss terms.
        optim: optimiser.
        frozen_dtype: type of the weights that do not train; "bfloat16" halves their memory and needs trainer.precision bf16-mixed.
        checkpointing: keep only the inputs of the language model's layers and compute the rest again on the way back; a number = of so
            many layers, as few as memory asks for (`python -m medplib.plan` says how many).
        compile: compile norms, attention and MLPs of the language model; pays on accelerators (docs/benchmarks_h200.md).
        feature_cache: folder in which the features of a frozen grounder encoder are kept, for this run and others; empty = none.
        feature_cache_gb: what is written there at most.
        seed: of initialisation and of everything random during training.
    """

    name: str
    output: str
    objective: Literal["conversation", "contrastive", "dense", "promptable"] = "conversation"
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig | None = None
    tokenizer: str | None = None
    moe: MoEConfig | None = None
    train: tuple[str, ...] = ()
    lora: LoraOptions | None = None
    train_token_rows: bool = False
    losses: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool | int = False
    compile: bool = False
    feature_cache: str = ""
    feature_cache_gb: float = 100.0
    seed: int = 0

    @property
    def recomputed(self) -> int | None:
        """How many layers `checkpointing` means; None = all."""
        return None if self.checkpointing is True else int(self.checkpointing)

    def __post_init__(self) -> None:
        where = f"stage '{self.name}'"
        if self.checkpointing < 0:
            raise InputError(where=f"{where}: checkpointing", expected="true, false or a number of layers", found=str(self.checkpointing))
        check_parts(self.train, where=f"{where}: train")
        check_parts(self.init.fresh, where=f"{where}: init.fresh")
        check_parts(self.optim.lr_by_part, where=f"{where}: optim.lr_by_part")
        check_parts(self.optim.muon, where=f"{where}: optim.muon")
        plain = [self.init.base, self.init.token_rows, *self.init.experts.values()]
        plain += [parent for name, parent in self.init.parts.items() if name != "vision" or parent.part != "grounder"]
        if misplaced := [parent.part for parent in plain if parent is not None and parent.part is not None]:
            raise InputError(
                where=f"{where}: init", expected="'part: grounder', under init.parts.vision only", found=f"part: {misplaced[0]} elsewhere"
            )
        if (self.init.base is None) == (self.model is None):
            both = "both" if self.model is not None else "neither"
            raise InputError(
                where=where, expected="either init.base or model", found=both, remedy="sizes come from the base when there is one"
            )
        if (self.init.base is None) != (self.tokenizer is not None):
            raise InputError(
                where=f"{where}: tokenizer", expected="a tokenizer exactly when there is no init.base", found=str(self.tokenizer)
            )
        if set(self.init.experts) != set(self.moe.experts if self.moe else ()):
            raise InputError(
                where=f"{where}: init.experts",
                expected=f"one parent for each of {', '.join(self.moe.experts) if self.moe else 'no expert'}",
                found=", ".join(self.init.experts) or "none",
                remedy="name them under model.stage.init.experts",
            )
        if self.train_token_rows and (both := sorted({"language", "language.embeddings", "language.head"} & set(self.train))):
            raise InputError(where=f"{where}: train_token_rows", expected="tables that do not train as a whole", found=f"train: {both[0]}")
        if not self.train and self.lora is None and not self.train_token_rows:
            raise InputError(where=f"{where}: train", expected="something to train", found="nothing")
