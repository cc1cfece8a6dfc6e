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
l: slices of a volume, in batches beside one at a time.
m: two ranks that exchange gradients beside two processes apart.
n: the grounder on a batch beside one image and one prompt at a time.
o: a training step in float32 beside the same in bfloat16, on CPUs that multiply it.
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
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from bench_bfloat16 import bfloat16_rows
from bench_data import data_rows
from bench_features import feature_rows
from bench_lora import lora_rows
from bench_metrics import metric_rows
from bench_parts import Row, label_rows, moe_rows, product_seconds
from bench_ranks import rank_rows
from bench_stages import STAGES, answers, masks, second_pass, step_rows
from bench_step import peer_step_rows
from bench_volume import volume_rows
from bench_whole import prefix_rows, size_rows, start_rows

import medplib  # noqa: F401  (before anything that imports torchvision)

PARTS = {
    "a": moe_rows,
    "a_lora": lora_rows,
    "b": peer_step_rows,
    "c": feature_rows,
    "d": prefix_rows,
    "e": label_rows,
    "f": answers,
    "g": second_pass,
    "h": data_rows,
    "i": metric_rows,
    "j": start_rows,
    "k": size_rows,
    "l": volume_rows,
    "m": rank_rows,
    "n": masks,
    "o": bfloat16_rows,
}


ON_CUDA = ("a", "a_lora", "b", "d", "e", "f", "g", "n", *STAGES)
"""Rows that have sizes for an accelerator."""


def table(rows: list[Row], device: str) -> str:
    """A Markdown table."""
    command = "--out docs/benchmarks.json" if "CPU" in device else "--device cuda --out docs/benchmarks_h200.json"
    where = f"Written by `python scripts/bench.py {command}` on: {device}."
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
    parser.add_argument("--only", help="rows, separated by commas; default: all that the device has sizes for")
    parser.add_argument("--size", choices=["tiny", "full"], help="of the step rows; default: full on cuda, tiny on cpu")
    parser.add_argument("--samples", type=int, help="of a micro-batch; default: that of the configuration")
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args(arguments)
    chosen = (ON_CUDA if given.device == "cuda" else known) if given.only is None else given.only.split(",")
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    size = given.size or ("full" if given.device == "cuda" else "tiny")
    rows: list[Row] = []
    for name in chosen:
        before = product_seconds(given.device)
        if name in STAGES:
            found = step_rows(name, device=given.device, size=size, samples=given.samples)
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
