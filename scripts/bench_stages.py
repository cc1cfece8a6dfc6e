"""Rows of scripts/bench.py about whole models: training steps of the full-size stages beside their plans, and the model of other rows."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_masks import mask_rows, second_pass_rows
from bench_parts import Row, interleaved
from bench_sizes import sizes
from bench_whole import answer_rows

from medplib.models.build import ModelConfig, build_model
from medplib.models.config_grounding import GrounderConfig, VitConfig
from medplib.models.medplib import MedPLIB
from medplib.planning.compute import Load, Work, measure_step
from medplib.planning.memory import Weights, checkpointed, fewest_recomputed, rank_memory
from medplib.planning.parameters import count_parameters, empty_model
from medplib.planning.resolve import PlannedStage, plan_stage
from medplib.tokens import IMAGE_PLACEHOLDER
from medplib.training.lora import add_lora
from medplib.training.objectives import conversation
from medplib.training.optim import build_optimizer
from medplib.training.trainable import cast_frozen, choose_trained
from medplib.types import Batch, Letterbox, Record

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"step3": "stage3_grounding", "step4": "stage4_moe"}
SEG_ID = 5
TEXT, ANSWER = 128, 2
FULL_SAMPLES = 16
TARGET, STRETCH = 0.50, 0.63
"""Share of the measured roof."""


def tiny(config: ModelConfig) -> ModelConfig:
    """The same parts at a size that a CPU steps through in a second."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
    clip = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 14,
    }
    grounder = GrounderConfig(image_size=128, vit=VitConfig(width=64, depth=2, heads=4, window_size=7, global_blocks=(1,)))
    return replace(
        config,
        vision=replace(config.vision, image_size=112, grid=8, hf_config={**config.vision.hf_config, **clip}),
        language=replace(config.language, vocab_size=512, hf_config={**config.language.hf_config, **sizes}),
        grounder=grounder if config.grounder is not None else None,
    )


def random_model(planned: PlannedStage, config: ModelConfig, device: str, *, recomputed: int = 0, adapters: bool = True) -> MedPLIB:
    """The model of a stage with random weights on `device`: frozen ones in bfloat16, trained ones in float32 (without adapters none is)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = build_model(config, vocab_size=config.language.vocab_size)
            if adapters:
                add_lora(model, planned.stage.lora)
    finally:
        torch.set_default_dtype(before)
    if adapters:
        choose_trained(model, planned.stage, seg_id=SEG_ID)
        cast_frozen(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if (adapters and parameter.requires_grad) or ".router." in name:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    if recomputed:
        model.language.recompute_layers(recomputed)
    return model.train()


def random_batch(config: ModelConfig, samples: int, device: str) -> Batch:
    """Samples of an image, TEXT tokens of which the last ANSWER are supervised, and one mask each."""
    size, images = config.grounder.image_size, config.image_tokens
    ids = torch.randint(10, config.language.vocab_size, (samples, images + TEXT))
    ids[:, 1 : 1 + images] = IMAGE_PLACEHOLDER
    ids[:, -ANSWER] = SEG_ID
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    rows = torch.arange(samples)
    width = config.vision.image_size
    batch = Batch(
        input_ids=ids,
        labels=labels,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        segments=torch.ones_like(ids),
        positions=torch.arange(ids.shape[1]).repeat(samples, 1),
        vision_pixels=torch.randint(0, 255, (samples, 3, width, width), dtype=torch.uint8),
        sam_pixels=torch.randint(0, 255, (samples, 3, size, size), dtype=torch.uint8),
        letterboxes=[Letterbox.fit((size, size), size)] * samples,
        target_row=rows,
        target_position=torch.full((samples,), ids.shape[1] - ANSWER - 1),
        target_image=rows,
        target_present=torch.ones(samples, dtype=torch.bool),
        target_masks=(torch.rand(samples, size, size) > 0.5).to(torch.uint8) * 255,
        original_masks=[None] * samples,
        name_ids=torch.zeros(samples, 1, dtype=torch.int64),
        names=["target"] * samples,
        region_masks=torch.zeros(0, config.vision.grid, config.vision.grid),
        region_image=torch.zeros(0, dtype=torch.int64),
        records=[(Record("bench", (Path("image"),), ()),)] * samples,
        unmasked=ids.shape[1],
    )
    return batch.to(device)


def roof(device: str) -> float:
    """FLOP/s of a large bfloat16 matrix product on this device, best of several."""
    n = sizes(device).roof
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(interleaved({"roof": lambda: a @ b}, device=device, repeats=8)["roof"])


def step_rows(row: str, *, device: str, size: str, samples: int | None) -> list[Row]:
    """A training step of a stage beside its plan, with as few layers computed again as fit; on an accelerator also with compiled layers."""
    planned = plan_stage([ROOT / "configs" / "stages" / f"{STAGES[row]}.yaml"], vocab_size=None)
    config = tiny(planned.model) if size == "tiny" else planned.model
    samples = samples or (2 if size == "tiny" else FULL_SAMPLES)
    empty = empty_model(planned.stage, config, vocab_size=config.language.vocab_size)
    parts, layers = count_parameters(empty), len(empty.language.decoder.layers)
    works = measure_step(empty, config, Load(samples, TEXT, ANSWER), dtype=torch.bfloat16, with_masks=True)
    counts = Weights(sum(p.total for p in parts), sum(p.trained for p in parts), 0)
    room = torch.cuda.get_device_properties(0).total_memory / 2**30 if device == "cuda" else 1.0
    again = fewest_recomputed(counts, works, strategy="none", ranks=1, frozen_bytes=2, layers=layers, gib=room)
    again = layers if again is None else again
    plan = rank_memory(counts, works, strategy="none", ranks=1, recomputed=again, frozen_bytes=2, layers=layers)
    torch.manual_seed(0)
    model, batch = random_model(planned, config, device, recomputed=again), random_batch(config, samples, device)
    step = training_step(planned, model, batch, device)
    name = f"share of the roof in a step of {STAGES[row]}, {size}"
    rows = [_step_row(row, name, step, works, device, samples=samples, planned=plan.total, layers=layers, recomputed=again)]
    if device == "cuda":
        model.language.compile_layers()
        more = {"samples": samples, "planned": plan.total, "layers": layers, "recomputed": again}
        rows.append(_step_row(f"{row}_compiled", f"{name}, layers compiled", step, works, device, **more))
    return rows


def training_step(planned: PlannedStage, model: MedPLIB, batch: Batch, device: str) -> Callable[[], None]:
    """What a step of training does, without the trainer."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = build_optimizer(planned.stage.optim, trained)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = conversation(model, batch, planned.stage.losses).terms.total(planned.stage.losses)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _step_row(
    row: str, name: str, step: Callable[[], None], works: list[Work], device: str,
    *, samples: int, planned: float, layers: int, recomputed: int,
) -> Row:  # fmt: skip
    """Times a step. The share counts what a step must compute; what checkpointing computes again counts in `hardware_share` only."""
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = roof(device)
    seconds = statistics.median(interleaved({"step": step}, device=device, repeats=5 if device == "cuda" else 2)["step"])
    after = roof(device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    flops = sum(work.forward + work.backward for work in works)
    done = sum(work.forward + work.backward for work in (checkpointed(w, layers, recomputed) for w in works))
    best = max(before, after)
    details = {
        "seconds": seconds,
        "samples": samples,
        "samples_per_second": samples / seconds,
        "layers_recomputed": recomputed,
        "tflop": flops / 1e12,
        "hardware_share": done / seconds / best,
        "roof_tflop_per_second": best / 1e12,
        "roof_drift": abs(before - after) / before,
        "planned_gib": planned / 2**30,
        "peak_gib": peak / 2**30,
        "peak_over_planned": peak / planned,
    }
    return Row(row, name, flops / seconds / best, "matrix product", 1.0, TARGET, STRETCH, False, details)


def asked_model(device: str, samples: int) -> tuple[MedPLIB, Batch]:
    """The model of stage IV with random weights and a batch of questions: tiny on a CPU, 7B on an accelerator."""
    planned = plan_stage([ROOT / "configs" / "stages" / "stage4_moe.yaml"], vocab_size=None)
    config = planned.model if device == "cuda" else tiny(planned.model)
    torch.manual_seed(0)
    if device == "cuda":
        return random_model(planned, config, device, adapters=False), random_batch(config, samples, device)
    with torch.device(device):
        model = build_model(config, vocab_size=config.language.vocab_size)
    return model, random_batch(config, samples, device)


def answers(device: str) -> list[Row]:
    """Row f."""
    return answer_rows(*asked_model(device, sizes(device).answers), device)


def second_pass(device: str) -> list[Row]:
    """Row g."""
    return second_pass_rows(*asked_model(device, sizes(device).answers), device)


def masks(device: str) -> list[Row]:
    """Row n."""
    model, batch = asked_model(device, sizes(device).images)
    return mask_rows(model.grounder, batch, device)
