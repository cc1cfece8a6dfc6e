"""Rows of scripts/bench.py about a LoRA training step of the language model alone, beside transformers' Llama with peft."""

from collections.abc import Callable
from copy import deepcopy

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, halves, interleaved, median_ratio
from bench_sizes import sizes
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask
from medplib.training.lora import adapt
from medplib.training.stage import LoraOptions

LABELS = 16
"""Supervised words of a conversation, as of a short answer."""
OPTIONS = LoraOptions(r=8, alpha=16, dropout=0.0, targets=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"))


def peer_step_rows(
    device: str, *, width: int | None = None, layers: int | None = None, length: int | None = None, samples: int | None = None,
    repeats: int = 5,
) -> list[Row]:  # fmt: skip
    """The same weights, tokens and labels in both; forward, backward and AdamW of the adapters. Also the share of the roof.

    On an accelerator frozen weights are bfloat16, adapters float32, and both compute under autocast.
    """
    torch.manual_seed(0)
    size = sizes(device)
    width, layers, length, samples = width or size.width, layers or size.layers, length or size.length, samples or size.samples
    config = LanguageConfig(
        hidden_size=width,
        layers=layers,
        heads=max(4, width // 128),
        mlp_size=size.hidden * width // size.width,
        vocab_size=min(size.vocabulary, 16 * width),
    )
    with torch.device(device):
        ours = LanguageModel(config).to(size.dtype)
    names = [name for name, part in ours.model.named_modules() if name.rpartition(".")[2] in OPTIONS.targets]
    lora = LoraConfig(r=OPTIONS.r, lora_alpha=OPTIONS.alpha, target_modules=names, bias="none")
    peer = get_peft_model(deepcopy(ours.model), lora)
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    adapt(ours.model, names, OPTIONS)
    for parameter in ours.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    runs = _runs(ours, peer, device, samples=samples, length=length)
    square = torch.randn(size.roof, size.roof, device=device, dtype=size.dtype)
    seconds = interleaved({**runs, "roof": lambda: square @ square}, device=device, repeats=repeats)
    ratio, details = median_ratio(seconds, "peer", "ours")
    weights = sum(p.numel() for p in ours.decoder.layers.parameters() if not p.requires_grad)
    tokens = samples * length
    flops = 4 * weights * tokens + 8 * layers * tokens * length * width  # no gradients of frozen weights; scores, forward and back
    name = f"LoRA step of a Llama of {layers} layers of {width}, {samples} x {length} tokens"
    share = flops / details["ours_seconds"] / (2 * size.roof**3 / min(seconds["roof"]))
    details["tokens_per_second"] = tokens / details["ours_seconds"]
    goal = size.step
    return [
        Row("b", f"{name}: share of the roof", share, "matrix product", 1.0, goal.target, goal.stretch, False, details),
        Row(
            "b_peer", f"{name}: transformers with peft over ours", ratio, "LlamaForCausalLM + peft", float("nan"), 1.0, 1.1, False, details
        ),
    ]


def _runs(ours: LanguageModel, peer: torch.nn.Module, device: str, *, samples: int, length: int) -> dict[str, Callable[[], None]]:
    """A step of either, after a look whether their losses are equal."""
    ids = torch.randint(ours.vocab_size, (samples, length), device=device)
    labels = torch.full_like(ids, -100)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    all_tokens, segments = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    positions = torch.arange(length, device=device).expand_as(ids)

    def our_loss() -> torch.Tensor:
        with halves(device):
            hidden = ours.hidden(ours.embed(ids), mask=prefix_mask(all_tokens, segments), positions=positions, unmasked=length)
            chosen = labels[:, 1:] != -100
            return functional.cross_entropy(ours.logits(hidden[:, :-1][chosen]), labels[:, 1:][chosen])

    def peer_loss() -> torch.Tensor:
        with halves(device):
            return peer(input_ids=ids, attention_mask=all_tokens.long(), labels=labels).loss

    assert torch.allclose(our_loss(), peer_loss(), rtol=sizes(device).tolerance), "the losses differ"
    return {"peer": _step(peer, peer_loss), "ours": _step(ours, our_loss)}


def _step(module: torch.nn.Module, loss):
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)  # nothing moves, so that both stay equal

    def run() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
