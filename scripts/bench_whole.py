"""Rows of scripts/bench.py about whole steps: shared image prefix, batched answers, start of a command, size of a resume point."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, halves, interleaved, median_ratio
from bench_sizes import sizes
from torch.nn import functional

from medplib.inference.generate import generate
from medplib.inference.steps import Steps, steps_for
from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask
from medplib.models.medplib import MedPLIB
from medplib.plan import make_plan
from medplib.types import Batch

PREFIX, QUESTION, ANSWER = 620, 60, 8
ROOT = Path(__file__).resolve().parents[1]


def prefix_rows(device: str) -> list[Row]:
    """Training on Q questions of one image: one sequence with a shared prefix beside Q sequences with a prefix each."""
    torch.manual_seed(0)
    size = sizes(device)
    width = size.prefix_width
    shapes = LanguageConfig(
        hidden_size=width, layers=size.prefix_layers, heads=max(4, width // 128), mlp_size=size.hidden * width // size.width, vocab_size=512
    )
    with torch.device(device):
        language = LanguageModel(shapes).to(size.dtype)
    rows = []
    for questions, goal in ((1, size.prefix_alone), (2, size.prefix), (4, size.prefix), (8, size.prefix)):
        ids = torch.randint(512, (size.prefix_rows, PREFIX + questions * QUESTION), device=device)
        packed, apart = _packed(language, ids, questions), _apart(language, ids, questions)
        assert torch.allclose(packed(), apart(), atol=size.tolerance), "the losses per question differ"
        runs = {"apart": lambda apart=apart: apart().sum().backward(), "packed": lambda packed=packed: packed().sum().backward()}
        ratio, details = median_ratio(interleaved(runs, device=device, repeats=3), "apart", "packed")
        limit = questions * (PREFIX + QUESTION) / (PREFIX + questions * QUESTION)
        name = f"shared prefix, {questions} questions of {size.prefix_rows} images: share of the limit by number of tokens ({limit:.2f})"
        peer = "a sequence per question"
        rows.append(Row(f"d{questions}", name, ratio / limit, peer, 1.0, goal.target, goal.stretch, False, details))
    return rows


def _packed(language: LanguageModel, ids: torch.Tensor, questions: int) -> Callable[[], torch.Tensor]:
    """Losses (R, Q) of R sequences with a prefix and Q questions each."""
    segments = torch.cat([torch.zeros(PREFIX, dtype=torch.int64), torch.arange(1, questions + 1).repeat_interleave(QUESTION)])
    segments = segments.to(ids.device).expand_as(ids)
    behind = torch.arange(QUESTION, device=ids.device).repeat(questions) + PREFIX
    positions = torch.cat([torch.arange(PREFIX, device=ids.device), behind]).expand_as(ids)
    mask = prefix_mask(torch.ones_like(segments, dtype=torch.bool), segments)

    def run() -> torch.Tensor:
        hidden = language.hidden(language.embed(ids), mask=mask, positions=positions, unmasked=PREFIX + QUESTION)
        hidden = hidden[:, PREFIX:].unflatten(1, (questions, QUESTION))
        return _answer_losses(language, hidden.flatten(0, 1), ids[:, PREFIX:].reshape(-1, QUESTION)).view(len(ids), questions)

    return run


def _apart(language: LanguageModel, ids: torch.Tensor, questions: int) -> Callable[[], torch.Tensor]:
    """The same losses from R Q sequences of one question each."""
    body = ids[:, PREFIX:].reshape(-1, QUESTION)
    whole = torch.cat([ids[:, :PREFIX].repeat_interleave(questions, dim=0), body], dim=1)
    positions = torch.arange(whole.shape[1], device=ids.device).expand_as(whole)
    mask = prefix_mask(torch.ones_like(whole, dtype=torch.bool), torch.zeros_like(whole))

    def run() -> torch.Tensor:
        hidden = language.hidden(language.embed(whole), mask=mask, positions=positions, unmasked=whole.shape[1])[:, PREFIX:]
        return _answer_losses(language, hidden, body).view(len(ids), questions)

    return run


def _answer_losses(language: LanguageModel, hidden: torch.Tensor, body: torch.Tensor) -> torch.Tensor:
    """(N,) mean loss of the last ANSWER tokens of N questions."""
    logits = language.logits(hidden[:, -ANSWER - 1 : -1])
    return functional.cross_entropy(logits.flatten(0, 1), body[:, -ANSWER:].flatten(), reduction="none").view(len(body), -1).mean(dim=1)


def answer_rows(model: MedPLIB, batch: Batch, device: str) -> list[Row]:
    """Grounding answers of a batch in one pass beside one sample at a time, masks one by one, as the published evaluation does."""
    model.eval()
    limits = {"eos_id": -1, "seg_id": 5, "max_new_tokens": 6}

    def say_seg(step: int, states: torch.Tensor, logprobs: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        return torch.full((len(logprobs),), 5, device=logprobs.device) if step == 2 else logprobs.argmax(dim=-1)

    @torch.no_grad()
    def answer(part: Batch, steps: Steps | None = None) -> tuple[list[list[int]], torch.Tensor]:
        with halves(device):
            features = model.grounder.encode(part.sam_pixels, part.letterboxes)
            said = generate(model, part, **limits, decide=say_seg, steps=steps)
            masks = model.grounder.decode(features, said.seg_row, model.seg_projector(said.seg_states))
            return said.ids, masks.mask_logits > 0

    singles = [_sample(batch, index) for index in range(len(batch.input_ids))]
    fast = steps_for(model.language, torch.device(device))

    def one_by_one(steps: Steps | None = None) -> tuple[list[list[int]], torch.Tensor]:
        answers = [answer(single, steps) for single in singles]
        return [ids for found, _ in answers for ids in found], torch.cat([masks for _, masks in answers])

    size = sizes(device)
    (words, masks), (words_alone, masks_alone) = answer(batch, fast), one_by_one()
    same = sum(a == b for a, b in zip(words, words_alone, strict=True)) / len(words)
    pixels = float((masks == masks_alone).float().mean())
    if size.dtype == torch.float32:  # in bfloat16 rounding depends on the shape of a product, and words of random weights are close calls
        assert min(same, pixels) > 0.9999, f"{same:.3f} of the answers and {pixels:.5f} of the pixels are equal"
    runs = {"one_by_one": one_by_one, "batch": lambda: answer(batch, fast)}
    if device == "cuda":  # what capturing steps is worth
        alone = steps_for(model.language, torch.device(device))
        runs |= {"growing": lambda: answer(batch), "one_by_one_captured": lambda: one_by_one(alone)}
    seconds = interleaved(runs, device=device, repeats=size.answer_repeats)
    ratio, details = median_ratio(seconds, "one_by_one", "batch")
    details |= {f"{name}_seconds": min(seconds[name]) for name in runs}
    details |= {"equal_answers": same, "equal_pixels": pixels, "samples_per_second": len(singles) / details["batch_seconds"]}
    name, goal = f"grounding answers: one sample at a time over a batch of {len(singles)}", size.batched_answers
    return [Row("f", name, ratio, "a loop over samples", float("nan"), goal.target, goal.stretch, False, details)]


def _sample(batch: Batch, index: int) -> Batch:
    """One row of a batch with one image and one target per row."""
    one = slice(index, index + 1)
    return Batch(
        input_ids=batch.input_ids[one], labels=batch.labels[one], attention_mask=batch.attention_mask[one], segments=batch.segments[one],
        positions=batch.positions[one], vision_pixels=batch.vision_pixels[one], sam_pixels=batch.sam_pixels[one],
        letterboxes=batch.letterboxes[one], target_row=batch.target_row[:1], target_position=batch.target_position[one],
        target_image=batch.target_image[:1], target_present=batch.target_present[one], target_masks=batch.target_masks[one],
        original_masks=batch.original_masks[one], name_ids=batch.name_ids[one], names=batch.names[one], region_masks=batch.region_masks,
        region_image=batch.region_image, records=batch.records[one],
    )  # fmt: skip


def start_rows(device: str) -> list[Row]:
    """Seconds of `import medplib` and of `python -m medplib.fit --help` beside the imports that they cannot do without."""

    def python(*arguments: str):
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)

    pairs = (
        ("j_import", "import medplib over import torch", python("-c", "import medplib"), python("-c", "import torch"), 1.15, 1.05),
        (
            "j_help",
            "fit --help over import lightning",
            python("-m", "medplib.fit", "--help"),
            python("-c", "import medplib, lightning"),
            2.0,
            1.2,
        ),
    )
    rows = []
    for key, name, ours, peer, target, stretch in pairs:
        ratio, details = median_ratio(interleaved({"ours": ours, "peer": peer}, device=device, repeats=5), "ours", "peer")
        rows.append(Row(key, name, ratio, "the import alone", 1.0, target, stretch, True, details))
    return rows


def size_rows(device: str) -> list[Row]:
    """Bytes of a resume point (trained weights and two moments, float32) beside everything in bfloat16, at 7B by the plan."""
    rows = []
    for stage, *parts in (("stage3_grounding",), ("stage4_moe",), ("stage4_moe", "train_token_rows")):
        begin = time.perf_counter()
        files = [ROOT / "configs" / "stages" / f"{stage}.yaml", *(ROOT / "configs" / "parts" / f"{part}.yaml" for part in parts)]
        plan = make_plan(files, ranks=(1,))
        trained, total = sum(p.trained for p in plan.parts), sum(p.total for p in plan.parts)
        point, full = 12 * trained, 2 * total + 8 * trained
        name = f"full checkpoint over resume point, {' with '.join([stage, *parts])} at 7B"
        details = {"point_gb": point / 1e9, "full_gb": full / 1e9, "plan_seconds": time.perf_counter() - begin}
        rows.append(
            Row(
                "_".join(["k", stage, *parts]), name, full / point, "weights and optimiser states", full / point, 30.0, 30.0, False, details
            )
        )
    return rows
