"""Rows of scripts/bench.py about a LoRA training step of the language model alone, beside transformers' Llama with peft."""

from copy import deepcopy

import medplib  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from bench_parts import Row, interleaved, median_ratio
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch.nn import functional

from medplib.models.language import LanguageConfig, LanguageModel, prefix_mask

LABELS = 16
"""Supervised words of a conversation, as of a short answer."""
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], bias="none")


def peer_step_rows(device: str, *, width: int = 512, layers: int = 4, length: int = 640, samples: int = 2, repeats: int = 5) -> list[Row]:
    """The same weights, tokens and labels in both; forward, backward and AdamW of the adapters. Also the share of the roof."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "layers": layers, "heads": width // 64, "mlp_size": 11 * width // 4, "vocab_size": 8192}
    ours = LanguageModel(LanguageConfig(**sizes)).to(device)
    peer = get_peft_model(deepcopy(ours.model), LORA)
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(LORA, ours.model)
    ids = torch.randint(8192, (samples, length), device=device)
    labels = torch.full_like(ids, -100)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    all_tokens, segments = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    positions = torch.arange(length, device=device).expand_as(ids)

    def our_loss() -> torch.Tensor:
        hidden = ours.hidden(ours.embed(ids), mask=prefix_mask(all_tokens, segments), positions=positions)
        chosen = labels[:, 1:] != -100
        return functional.cross_entropy(ours.logits(hidden[:, :-1][chosen]), labels[:, 1:][chosen])

    def peer_loss() -> torch.Tensor:
        return peer(input_ids=ids, attention_mask=all_tokens.long(), labels=labels).loss

    assert torch.allclose(our_loss(), peer_loss(), rtol=1e-5), "the losses differ"
    square = torch.randn(1024, 1024, device=device)
    runs = {"peer": _step(peer, peer_loss), "ours": _step(ours, our_loss), "roof": lambda: square @ square}
    seconds = interleaved(runs, device=device, repeats=repeats)
    ratio, details = median_ratio(seconds, "peer", "ours")
    weights = sum(p.numel() for p in ours.decoder.layers.parameters() if not p.requires_grad)
    flops = 4 * weights * ids.numel() + 8 * layers * samples * length**2 * width  # no gradients of frozen weights; scores, forward and back
    name = f"LoRA step of a Llama of {layers} layers of {width}, {samples} x {length} tokens"
    share = flops / details["ours_seconds"] / (2 * 1024**3 / min(seconds["roof"]))
    return [
        Row("b", f"{name}: share of the roof", share, "matrix product", 1.0, 0.55, 0.75, False, details),
        Row(
            "b_peer", f"{name}: transformers with peft over ours", ratio, "LlamaForCausalLM + peft", float("nan"), 1.0, 1.1, False, details
        ),
    ]


def _step(module: torch.nn.Module, loss):
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)  # nothing moves, so that both stay equal

    def run() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
