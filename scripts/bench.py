"""Benchmarks: python scripts/bench.py --device cpu|cuda [--only a,e,step3,step4] [--size tiny|full] [--out FILE.json]

Every row is a ratio of two implementations in one process, run in turns.
a: the mixture of experts beside one dense MLP and beside transformers' own layers.
a_lora: the same with adapters in every expert.
b: a LoRA step of the language model beside transformers' with peft, and its share of the matrix-product roof.
d: several questions about one image in one sequence beside a sequence each.
e: cross-entropy at labelled rows beside that of all rows.
f: answers with masks, a batch beside one sample at a time.
g: answers with masks, states kept while decoding beside a second forward.
h: samples read, encoded and collated beside decoding their files.
i: overlap and surface Dice of masks beside loops over tensors and MONAI.
m: two ranks that exchange gradients beside two processes apart.
n: the grounder on a batch beside one image and one prompt at a time.
j: how long commands take to start; k: bytes of a resume point.
step3, step4: one training step of the full-size stages III and IV with random weights, beside what `medplib.plan` says: samples per second,
share of the matrix-product roof measured in the same run, peak memory over planned memory. On a CPU the same code runs at a tiny size.
A matrix product is timed before and after each row; a row between products that differ by more than a tenth is marked ~ in the table.
With --out a Markdown table of the same name is written beside the JSON; with --only the other rows of both stay as they are.
"""

import argparse
import json
import platform
import re
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from bench_data import data_rows
from bench_features import feature_rows
from bench_lora import lora_rows
from bench_masks import mask_rows, second_pass_rows
from bench_metrics import metric_rows
from bench_parts import Row, interleaved, label_rows, moe_rows, product_seconds
from bench_ranks import rank_rows
from bench_step import peer_step_rows
from bench_whole import answer_rows, prefix_rows, size_rows, start_rows

import medplib  # noqa: F401  (before anything that imports torchvision)
from medplib.models.build import ModelConfig, build_model
from medplib.models.config_grounding import GrounderConfig, VitConfig
from medplib.models.medplib import MedPLIB
from medplib.planning.compute import Load, measure_step
from medplib.planning.memory import Weights, checkpointed, rank_memory
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


def random_model(planned: PlannedStage, config: ModelConfig, device: str) -> MedPLIB:
    """The model of a stage with random weights on `device`: frozen ones in bfloat16, trained ones in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = build_model(config, vocab_size=config.language.vocab_size)
            add_lora(model, planned.stage.lora)
    finally:
        torch.set_default_dtype(before)
    choose_trained(model, planned.stage, seg_id=SEG_ID)
    cast_frozen(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or ".router." in name:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    if planned.stage.checkpointing:
        model.language.recompute_layers()
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
    )
    return batch.to(device)


def roof(device: str) -> float:
    """FLOP/s of a large bfloat16 matrix product on this device, best of several."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(interleaved({"roof": lambda: a @ b}, device=device, repeats=8)["roof"])


def step_row(row: str, *, device: str, size: str, samples: int | None) -> Row:
    """One training step of a stage beside its plan."""
    planned = plan_stage([ROOT / "configs" / "stages" / f"{STAGES[row]}.yaml"], vocab_size=None)
    config = tiny(planned.model) if size == "tiny" else planned.model
    samples = samples or (2 if size == "tiny" else int(planned.data["batch_size"]))
    empty = empty_model(planned.stage, config, vocab_size=config.language.vocab_size)
    parts, layers = count_parameters(empty), len(empty.language.decoder.layers)
    works = measure_step(empty, config, Load(samples, TEXT, ANSWER), dtype=torch.bfloat16, with_masks=True)
    counts = Weights(sum(p.total for p in parts), sum(p.trained for p in parts), 0)
    plan = rank_memory(counts, works, strategy="none", ranks=1, checkpointing=planned.stage.checkpointing, frozen_bytes=2, layers=layers)
    torch.manual_seed(0)
    model, batch = random_model(planned, config, device), random_batch(config, samples, device)
    optimizer = build_optimizer(planned.stage.optim, [(n, p) for n, p in model.named_parameters() if p.requires_grad])

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = conversation(model, batch, planned.stage.losses).total(planned.stage.losses)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = roof(device)
    seconds = statistics.median(interleaved({"step": step}, device=device, repeats=5 if device == "cuda" else 2)["step"])
    after = roof(device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    done = [checkpointed(work, layers) if planned.stage.checkpointing else work for work in works]
    flops = sum(work.forward + work.backward for work in done)
    share = flops / seconds / max(before, after)
    details = {
        "seconds": seconds,
        "samples": samples,
        "samples_per_second": samples / seconds,
        "tflop": flops / 1e12,
        "roof_tflop_per_second": max(before, after) / 1e12,
        "roof_drift": abs(before - after) / before,
        "planned_gib": plan.total / 2**30,
        "peak_gib": peak / 2**30,
        "peak_over_planned": peak / plan.total,
    }
    return Row(row, f"share of the roof in a step of {STAGES[row]}, {size}", share, "matrix product", 1.0, TARGET, STRETCH, False, details)


def _on_tiny_model(device: str, samples: int = 16) -> tuple[MedPLIB, Batch]:
    """The tiny model of stage IV and a batch for it."""
    planned = plan_stage([ROOT / "configs" / "stages" / "stage4_moe.yaml"], vocab_size=None)
    config = tiny(planned.model)
    torch.manual_seed(0)
    with torch.device(device):
        model = build_model(config, vocab_size=config.language.vocab_size)
    return model, random_batch(config, samples, device)


def _answers(device: str) -> list[Row]:
    return answer_rows(*_on_tiny_model(device), device)


def _second_pass(device: str) -> list[Row]:
    return second_pass_rows(*_on_tiny_model(device), device)


def _masks(device: str) -> list[Row]:
    model, batch = _on_tiny_model(device)
    return mask_rows(model.grounder, batch, device)


PARTS = {
    "a": moe_rows,
    "a_lora": lora_rows,
    "b": peer_step_rows,
    "c": feature_rows,
    "d": prefix_rows,
    "e": label_rows,
    "f": _answers,
    "g": _second_pass,
    "h": data_rows,
    "i": metric_rows,
    "j": start_rows,
    "k": size_rows,
    "m": rank_rows,
    "n": _masks,
}


def table(rows: list[Row], device: str) -> str:
    """A Markdown table."""
    where = f"Written by `python scripts/bench.py --out docs/benchmarks.json` on: {device}."
    lines = ["# Benchmarks", "", where, "", "| row | what | ratio | target | stretch | met | peer | threads |", "|" + "---|" * 8]
    for row in rows:
        sign, met = "<=" if row.lower else ">=", "yes" if row.met else "no"
        met += " ~" if row.details.get("product_drift", 0) > 0.1 else ""
        targets = f"{sign} {row.target:g} | {sign} {row.stretch:g}"
        lines.append(f"| {row.id} | {row.name} | {row.ratio:.2f} | {targets} | {met} | {row.peer} | {row.details.get('threads', '')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse the command line, run, print, write."""
    known = (*PARTS, *STAGES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(known), help="rows, separated by commas")
    parser.add_argument("--size", choices=["tiny", "full"], help="of the step rows; default: full on cuda, tiny on cpu")
    parser.add_argument("--samples", type=int, help="of a micro-batch; default: that of the configuration")
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args(arguments)
    if unknown := set(given.only.split(",")) - set(known):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    size = given.size or ("full" if given.device == "cuda" else "tiny")
    rows: list[Row] = []
    for name in given.only.split(","):
        before = product_seconds(given.device)
        if name in STAGES:
            found = [step_row(name, device=given.device, size=size, samples=given.samples)]
        else:
            found = PARTS[name](given.device)
        drift = abs(product_seconds(given.device) / before - 1)
        steady = {"product_drift": drift, "threads": torch.get_num_threads()}
        rows += [replace(row, details={**row.details, **steady}) for row in found]
        if given.device == "cuda":
            torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()} CPU"
    print(table(rows, device))
    for row in rows:
        print(row.id, "  ".join(f"{k} {v:.4g}" for k, v in row.details.items()))
    if given.out is not None:
        _write(given.out, rows, device)
    return rows


def _write(out: Path, rows: list[Row], device: str) -> None:
    """Write rows in the order of their ids; rows that are in the file already and were not run again stay."""
    whole = {row.id: row for row in rows}
    if out.exists():
        for stored in json.loads(out.read_text())["rows"]:
            whole.setdefault(stored["id"], Row(**{name: value for name, value in stored.items() if name != "met"}))
    ordered = sorted(whole.values(), key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.id)])
    stored = [{**asdict(row), "met": row.met} for row in ordered]
    out.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": stored}, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(ordered, device))


if __name__ == "__main__":
    main()
