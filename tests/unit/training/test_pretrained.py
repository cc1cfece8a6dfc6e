"""Language models and CLIP towers from local folders: weights arrive, masks and experts work, checkpoints need the folders no more."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import Trained
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from medplib.lineage import Lineage, load_checkpoint, save_checkpoint
from medplib.models.build import ModelConfig
from medplib.models.language import LanguageConfig, prefix_mask
from medplib.models.load import load_model
from medplib.models.moe import MoEConfig
from medplib.models.vision import VisionConfig
from medplib.tensorfiles import StoredTensor
from medplib.training.assemble import assemble
from medplib.training.stage import InitConfig, StageConfig

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("moe", [None, MoEConfig()])
def test_a_local_folder_is_a_language_model(tmp_path: Path, trained: Trained, family: str, moe: MoEConfig | None) -> None:

    kind, config, more = FAMILIES[family]
    torch.manual_seed(1)
    kind(config(**SIZES, **more)).save_pretrained(tmp_path / "lm")
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    ).save_pretrained(tmp_path / "clip")
    tokenizer = trained.checkpoints.parent / "tokenizer"
    stage = StageConfig(
        name="start",
        output="unused",
        tokenizer=str(tokenizer),
        model=ModelConfig(
            vision=VisionConfig(kind="clip", name=str(tmp_path / "clip"), image_size=56, grid=4, pretrained=True),
            language=LanguageConfig(pretrained=str(tmp_path / "lm")),
        ),
        init=InitConfig(fresh=("projector", "region", *(("router",) if moe else ()))),
        train=("projector",),
    )
    if moe is not None:
        stage = replace_language(stage, moe)
    built = assemble(stage)
    reference = kind.from_pretrained(tmp_path / "lm").eval()
    own = built.model.language.model.eval()
    mlp = own.model.layers[1].mlp
    up = mlp.experts["vl"].up_proj if moe else mlp.up_proj
    assert torch.equal(up.weight, reference.model.layers[1].mlp.up_proj.weight)
    assert built.model.language.vocab_size == len(built.tokenizer)
    assert built.config.language.pretrained is None

    ids = torch.randint(0, 300, (1, 9))
    mask = prefix_mask(torch.ones(1, 9, dtype=torch.bool), torch.zeros(1, 9, dtype=torch.int64))
    with torch.no_grad():
        wanted = reference(input_ids=ids).logits
        embeds, positions = built.model.language.embed(ids), torch.arange(9)[None]
        found = built.model.language.logits(built.model.language.hidden(embeds, mask=mask, positions=positions))
    torch.testing.assert_close(found[..., :300], wanted[..., :300], rtol=0, atol=1e-5)

    save_checkpoint(
        tmp_path / "written",
        tensors={name: StoredTensor.of(tensor) for name, tensor in built.model.state_dict().items()},
        config={"model": asdict(built.config)},
        save_tokenizer=built.tokenizer.save_pretrained,
        lineage=Lineage(stage="start", trained=(), steps=0),
    )
    for folder in ("lm", "clip"):
        (tmp_path / folder).rename(tmp_path / f"{folder}-gone")
    again = load_model(load_checkpoint(tmp_path / "written"))[0]
    with torch.no_grad():
        same = again.language.logits(again.language.hidden(embeds, mask=mask, positions=positions))
    torch.testing.assert_close(same, found, rtol=0, atol=1e-6)


def replace_language(stage: StageConfig, moe: MoEConfig) -> StageConfig:
    """The stage with experts that start as copies of the pretrained MLPs."""

    return replace(stage, model=replace(stage.model, language=replace(stage.model.language, moe=moe)))
