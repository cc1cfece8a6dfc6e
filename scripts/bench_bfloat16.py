"""Row of scripts/bench.py about bfloat16 on a CPU: a training step of a mixture of experts beside the same in float32."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, interleaved, median_ratio

from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask
from medplib.models.moe import MoEConfig
from medplib.models.precision import multiplies_bfloat16
from medplib.training.optim import MuonAdamW

SAMPLES = 14
LENGTHS = range(112, 209, 16)
"""As `data.length_step 16` makes them; how many rows an expert gets is another number in every step nevertheless."""


def bfloat16_rows(device: str, *, samples: int = SAMPLES, repeats: int = 21) -> list[Row]:
    """Forward, backward and Muon, all weights trained, lengths in turns; nothing where the processor does not multiply bfloat16."""
    if not multiplies_bfloat16(device):
        print(f"o: left out, this {device} does not multiply bfloat16 itself")
        return []
    torch.manual_seed(0)
    config = LanguageConfig(vocab_size=768, moe=MoEConfig(experts=("one", "other")))
    exact = LanguageModel(config).train()
    rough = deepcopy(exact)
    ids = torch.randint(config.vocab_size, (samples, max(LENGTHS)))
    losses = {
        "float32": _loss(exact, ids, nullcontext),
        "bfloat16": _loss(rough, ids, lambda: torch.autocast(device, dtype=torch.bfloat16)),
    }
    found = [float(loss(max(LENGTHS))) for loss in losses.values()]
    assert abs(found[1] / found[0] - 1) < 0.01, f"the losses differ: {found}"
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    runs = {name: _step(model, losses[name], types[name]) for name, model in (("float32", exact), ("bfloat16", rough))}
    ratio, details = median_ratio(interleaved(runs, device=device, repeats=repeats), "float32", "bfloat16")
    name = f"step of 4 layers of {config.hidden_size} with 2 experts, {samples} texts of changing length: float32 over bfloat16"
    return [Row("o", name, ratio, "the same in float32", 2.0, 1.2, 1.5, False, details)]


def _loss(model: LanguageModel, ids: torch.Tensor, context: Callable) -> Callable[[int], torch.Tensor]:
    def loss(length: int) -> torch.Tensor:
        seen = ids[:, :length]
        mask = torch.ones_like(seen, dtype=torch.bool)
        with context():
            positions = torch.arange(length).expand_as(seen)
            hidden = model.hidden(model.embed(seen), mask=prefix_mask(mask, torch.zeros_like(seen)), positions=positions)
            return torch.nn.functional.cross_entropy(model.logits(hidden[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())

    return loss


def _step(model: LanguageModel, loss: Callable[[int], torch.Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """A step; its length is the next one of LENGTHS."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": found, "lr": 1e-4, "name": name, "muon": name == "muon"} for name, found in (("adam", vectors), ("muon", matrices))
    ]
    optimizer = MuonAdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, iterations=3, dtype=dtype)
    count = 0

    def run() -> None:
        nonlocal count
        loss(LENGTHS[count % len(LENGTHS)]).backward()
        optimizer.step()
        optimizer.zero_grad()
        count += 1

    return run
