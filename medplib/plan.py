"""`python -m medplib.plan --config configs/stages/stage4_moe.yaml`: what a stage will need, before anything is downloaded or trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medplib.errors import InputError, OptionParser, run_command

if TYPE_CHECKING:
    from medplib.planning.compute import Work
    from medplib.planning.memory import RankMemory
    from medplib.planning.parameters import PartCount

TEXT_TOKENS = 128


@dataclass(frozen=True)
class Plan:
    """Everything that the command prints.

    Args:
        stage: its name.
        parts: parameters by part.
        image_tokens: per image.
        tokens: of one sample, image tokens included.
        samples: of one micro-batch.
        layers: of the language model.
        works: arithmetic and activations of one micro-batch.
        memory: per rank, by strategy, ranks and number of layers computed again.
        gpu_gib: of the accelerator asked about.
        fewest_recomputed: layers that `stage.checkpointing` must name to fit it without a strategy; None = even all do not do.
    """

    stage: str
    parts: list[PartCount]
    image_tokens: int
    tokens: int
    samples: int
    layers: int
    works: list[Work]
    memory: list[RankMemory]
    gpu_gib: float
    fewest_recomputed: int | None


def make_plan(
    files: list[Path], *, ranks: tuple[int, ...] = (1, 8, 64), gpu_gib: float = 80, text_tokens: int = TEXT_TOKENS,
    batch_size: int | None = None, vocab_size: int | None = None,
) -> Plan:  # fmt: skip
    """The plan of a stage.

    Args:
        files: configuration files as `python -m medplib.fit` takes them; later ones win.
        ranks: numbers of ranks to look at.
        gpu_gib: memory of one accelerator in GiB.
        text_tokens: per sample, besides the image.
        batch_size: samples of a micro-batch, None = that of the configuration.
        vocab_size: rows of the embedding, where no tokenizer is there to tell.

    Raises:
        InputError: a configuration that is wrong or whose sizes cannot be found out.
    """
    import torch

    from medplib.planning.compute import Load, measure_step
    from medplib.planning.memory import STRATEGIES, Weights, fewest_recomputed, rank_memory
    from medplib.planning.parameters import count_parameters, empty_model
    from medplib.planning.resolve import plan_stage

    planned = plan_stage(files, vocab_size=vocab_size)
    stage, config = planned.stage, planned.model
    rows = config.language.vocab_size if config.language is not None else vocab_size or 1
    model = empty_model(stage, config, vocab_size=rows)
    parts = count_parameters(model)
    layers = len(model.language.decoder.layers) if model.language is not None else 0
    blocks = [model.language.decoder.layers[0], model.language.head] if layers else [model.grounder.image_encoder]
    block = max(sum(p.numel() for p in module.parameters()) for module in blocks)
    samples = batch_size or int(planned.data.get("batch_size", 16))
    dtype = torch.bfloat16 if "bf16" in str(planned.trainer.get("precision", "")) else torch.float32
    works = measure_step(model, config, Load(samples=samples, text_tokens=text_tokens), dtype=dtype, with_masks=stage.losses.needs_masks)
    weights = Weights(sum(p.total for p in parts), sum(p.trained for p in parts), block)
    frozen = 2 if stage.frozen_dtype == "bfloat16" else 4
    memory = [
        rank_memory(weights, works, strategy=s, ranks=n, recomputed=c, frozen_bytes=frozen, layers=layers)
        for c in (0, layers)
        for s in STRATEGIES
        for n in ranks
    ]
    fewest = fewest_recomputed(weights, works, strategy="none", ranks=1, frozen_bytes=frozen, layers=layers, gib=gpu_gib)
    image_tokens = config.image_tokens if config.language is not None else 0
    return Plan(stage.name, parts, image_tokens, image_tokens + text_tokens, samples, layers, works, memory, gpu_gib, fewest)


def main() -> None:
    """Parse the command line, print the plan."""
    from medplib.paths import atomic_path
    from medplib.planning.report import plan_text

    parser = OptionParser(
        prog="python -m medplib.plan",
        description="Parameters, memory per rank and arithmetic per step of a stage; needs no weights and no accelerator.",
    )
    parser.add_argument("--config", action="append", required=True, help="configuration of the stage; given again, later files win")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64], help="numbers of ranks to look at")
    parser.add_argument("--gpu_gib", type=float, default=80, help="memory of one accelerator in GiB")
    parser.add_argument("--text_tokens", type=int, default=TEXT_TOKENS, help="per sample, besides the image")
    parser.add_argument("--batch_size", type=int, help="samples of a micro-batch; that of the configuration when left out")
    parser.add_argument("--vocab_size", type=int, help="rows of the embedding, where no tokenizer is there to tell")
    parser.add_argument("--out", type=Path, help="JSON file to write besides")
    given = parser.parse_args()
    for name in ("gpu_gib", "text_tokens", "batch_size", "vocab_size"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise InputError(where=f"--{name}", expected="at least 1", found=str(getattr(given, name)))
    if min(given.ranks) < 1:
        raise InputError(where="--ranks", expected="at least 1", found=str(given.ranks))
    made = make_plan(
        [Path(file) for file in given.config],
        ranks=tuple(given.ranks),
        gpu_gib=given.gpu_gib,
        text_tokens=given.text_tokens,
        batch_size=given.batch_size,
        vocab_size=given.vocab_size,
    )
    print(plan_text(made))
    if given.out is not None:
        with atomic_path(given.out) as temporary:
            temporary.write_text(json.dumps(asdict(made), indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
