"""Models of transformers from a folder: whole or refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from medplib.errors import InputError
from medplib.models.language import LanguageConfig, LanguageModel
from medplib.models.vision import VisionConfig, VisionEncoder
from medplib.tokenizer import load_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "lm"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    Qwen2ForCausalLM(Qwen2Config(**sizes, vocab_size=50, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def language(folder) -> LanguageModel:
    return LanguageModel(LanguageConfig(pretrained=str(folder), vocab_size=60))


def _weights(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def _config(**more):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))
        (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")

    return damage


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def test_all_weights_come_from_the_folder(qwen):
    found, wanted = language(qwen), load_file(qwen / "model.safetensors")
    assert torch.equal(found.decoder.layers[1].mlp.up_proj.weight, wanted[UP])
    assert torch.equal(found.embeddings.weight[:50], wanted["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_weights(lambda state: state.pop(UP)), rf"1 missing \({UP}\)"),
        (_weights(lambda state: state.update(surplus=torch.zeros(2))), r"1 left over \(surplus\)"),
        (_weights(lambda state: state.update({UP: torch.zeros(3, 3)})), rf"1 of another shape \({UP}\)"),
        (_config(auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}), "auto_map"),
        (_config(auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}, model_type="unknown"), "auto_map"),
        (_config(model_type="unknown"), "expected weights of transformers"),
        (_truncated, "SafetensorError"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected a model of transformers"),
        (shutil.rmtree, "expected a model of transformers"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, monkeypatch, qwen, damage, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(qwen, tmp_path / "lm")
    damage(folder)
    with pytest.raises(InputError, match=says) as error:
        language(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no vocabulary"), ("{}", "tokenizer folder"), ("{", "tokenizer folder"), ("[]", "tokenizer")]
)
def test_a_tokenizer_that_is_not_there_is_no_empty_one(tmp_path, qwen, content, says):
    folder = shutil.copytree(qwen, tmp_path / "lm")
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=says):
        load_tokenizer(folder)


def test_the_vision_tower_of_a_whole_clip_model(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    whole = CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 28, "patch_size": 14}))
    whole.save_pretrained(tmp_path)
    config = VisionConfig(kind="clip", name=str(tmp_path), pretrained=True, image_size=28, grid=2)
    found = VisionEncoder(config).backbone.model.state_dict()
    wanted = CLIPVisionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name.removeprefix("vision_model.")], tensor) for name, tensor in wanted.items())
    _weights(lambda state: state.pop("vision_model.encoder.layers.0.mlp.fc1.weight"))(tmp_path)
    with pytest.raises(InputError, match="1 missing"):
        VisionEncoder(config)
