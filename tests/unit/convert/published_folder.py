"""Published folders made of the golden weights, as the original scripts leave them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.parity.fixtures import clip_config, published_config, published_state

LETTERS = [chr(code) for code in range(ord("a"), ord("a") + 26)] + ["▁", "?", ".", ":"]


def write_published(folder: Path, fixture: str, *, shards: int = 2, binary: bool = False, change: float = 0.0) -> Path:
    """Weights of `fixture` in `shards` files with an index, config.json, a tokenizer with room for the added tokens, clip.json."""
    folder.mkdir(parents=True)
    state = dict(sorted(published_state(fixture).items()))
    if change:
        generator = torch.Generator().manual_seed(1)
        state = {
            name: (t + change * torch.randn(t.shape, generator=generator)).to(t.dtype)
            if name.startswith("model.layers.") and ".mlp." in name
            else t
            for name, t in state.items()
        }
    names, weight_map = list(state), {}
    for number in range(shards):
        suffix = ".bin" if binary else ".safetensors"
        file = f"model-{number + 1:05d}-of-{shards:05d}{suffix}"
        part = {name: state[name].contiguous() for name in names[number::shards]}
        torch.save(part, folder / file) if binary else save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = "pytorch_model.bin.index.json" if binary else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**published_config(fixture), "mm_vision_tower": "/someone/else/clip"}))
    (folder / "clip.json").write_text(json.dumps(clip_config(fixture)))
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder
