import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medplib.convert.published import ImportOptions, export_published, import_published
from medplib.convert.sizes import moe_sizes
from medplib.errors import InputError
from medplib.lineage import load_checkpoint
from medplib.models.load import load_model
from medplib.tensorfiles import open_tensors
from tests.parity.fixtures import published_state
from tests.unit.convert.published_folder import write_published

FIXTURES = ("llm_dense", "llm_moe")


def options(folder, **more) -> ImportOptions:
    return ImportOptions(clip=str(folder / "clip.json"), **more)


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("binary", [False, True])
def test_there_and_back_byte_for_byte(tmp_path, fixture, binary):
    folder = write_published(tmp_path / "published", fixture, binary=binary)
    import_published(folder, tmp_path / "ours", options(folder))
    export_published(load_checkpoint(tmp_path / "ours"), tmp_path / "back")
    before, after = open_tensors(folder), open_tensors(tmp_path / "back")
    assert set(before) == set(after) == set(published_state(fixture))
    for name, tensor in before.items():
        a, b = tensor.read(), after[name].read()
        assert a.dtype == b.dtype
        assert a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes(), name
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_an_imported_checkpoint_loads_and_says_where_it_is_from(tmp_path):
    folder = write_published(tmp_path / "published", "llm_moe")
    lineage = import_published(folder, tmp_path / "ours", options(folder, stage="stage4"))
    checkpoint = load_checkpoint(tmp_path / "ours", stage="stage4")
    model, tokenizer, config = load_model(checkpoint)
    assert [stamp.file for stamp in lineage.sources] == sorted(p.name for p in folder.glob("*.safetensors"))
    assert config.language.moe.experts == ("grounding", "vl")
    assert config.language.moe.gate == "probability"
    assert len(tokenizer) == 300
    assert "/someone/else" not in (tmp_path / "ours/config.json").read_text()
    expert = model.language.decoder.layers[1].mlp.experts["vl"].up_proj.weight
    wanted = published_state("llm_moe")["model.layers.1.mlp.deepspeed_moe.experts.deepspeed_experts.1.up_proj.weight"]
    assert torch.equal(expert, wanted.float())


def test_without_an_index_all_shards_are_read(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    import_published(folder, tmp_path / "ours", options(folder))
    assert load_checkpoint(tmp_path / "ours").config["model"]["language"]["moe"] is None


def test_rows_for_added_tokens_are_the_mean_of_the_others(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        state[table] = state[table][:290].contiguous()
    save_file(state, file)
    told = []
    import_published(folder, tmp_path / "ours", options(folder), say=told.append)
    rows = load_file(tmp_path / "ours/model.safetensors")["language.model.lm_head.weight"]
    assert rows.shape[0] == 300
    assert torch.equal(rows[295], state["lm_head.weight"].float().mean(0).half())
    assert ["10 rows added" in line for line in told] == [True, True]


def test_a_llava_folder_has_no_grounder(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    (file,) = folder.glob("*.safetensors")
    absent = ("model.visual_model.", "model.text_hidden_fcs.", "model.region_fea_adapter.")
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith(absent)}, file)
    (folder / "model.safetensors.index.json").unlink()
    import_published(folder, tmp_path / "ours", options(folder, stage="llava"))
    assert load_checkpoint(tmp_path / "ours").config["model"]["grounder"] is None


def _edit(folder, change) -> None:
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    (folder / "model.safetensors.index.json").unlink()


def _missing(folder):
    _edit(folder, lambda state: [state.pop("model.mm_projector.0.bias"), state.pop("model.norm.weight")])


def _left_over(folder):
    _edit(folder, lambda state: state.update({"model.mm_token_compressor.norm.weight": torch.zeros(3)}))


def _other_shape(folder):
    _edit(folder, lambda state: state.update({"model.mm_projector.2.bias": torch.zeros(65)}))


def _other_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))


def _missing_shard(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _outside_shard(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "../model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))


def _no_config(folder):
    (folder / "config.json").unlink()


def _truncated(folder):
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])


def _other_clip(folder):
    (folder / "clip.json").write_text(json.dumps({"num_attention_heads": 4, "hidden_size": 64}))


def _changed_config(**more):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **more}))

    return damage


def _without(name):
    return lambda folder: _edit(folder, lambda state: state.pop(name))


def _flat(name):
    return lambda folder: _edit(folder, lambda state: state.update({name: state[name].flatten()}))


def _no_numbers(folder):
    _edit(folder, lambda state: state.update({"lm_head.weight": state["lm_head.weight"].to(torch.int8)}))


def _twice(folder):
    _edit(folder, lambda state: state.update({"language_model.model.norm.weight": state["model.norm.weight"] + 1}))


def _no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def _broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def _code_beside_tokenizer(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))


def _code_beside_clip(folder):
    clip = json.loads((folder / "clip.json").read_text())
    (folder / "clip.json").write_text(json.dumps({**clip, "auto_map": {"AutoModel": "evil.Model"}}))


def _broken_clip(folder):
    (folder / "clip.json").write_text("{nope")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("model.embed_tokens.weight"), "embed_tokens.weight with 2 dimensions, found no such tensor"),
        (_without("model.visual_model.mask_decoder.mask_tokens.weight"), "mask_tokens.weight with 2"),
        (_without("model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight"), "position_embedding.weight with 2"),
        (_flat("model.embed_tokens.weight"), r"shape \(19200,\)"),
        (_flat("model.visual_model.image_encoder.pos_embed"), "pos_embed with 4"),
        (_no_numbers, "1 no floating-point numbers .language.model.lm_head.weight"),
        (_twice, "one tensor that becomes model.norm.weight"),
        (_no_tokenizer, "tokenizer.json or tokenizer.model"),
        (_broken_tokenizer, "a LLaMA tokenizer"),
        (_code_beside_tokenizer, "auto_map"),
        (_code_beside_clip, "auto_map"),
        (_broken_clip, "clip.json"),
        (_changed_config(text_config={"auto_map": {"AutoModel": "evil.Model"}}), "auto_map"),
        (_changed_config(num_attention_heads="four"), "sizes of LlamaConfig"),
        (_changed_config(num_attention_heads=7), "sizes of LlamaConfig"),
        (_changed_config(moe="yes"), "a section moe"),
        (_changed_config(moe={"num_experts": []}), "one number of experts"),
        (_changed_config(moe={"num_experts": 2, "top_k_experts": 3}), "top_k_experts between 1 and 2"),
        (_changed_config(tokenizer_model_max_length="long"), "tokenizer_model_max_length"),
        (_changed_config(medplib={}), "model and experts"),
        (_missing, "2 missing"),
        (_left_over, "mm_token_compressor"),
        (_other_shape, r"1 of another shape .*\(65,\) instead of \(64,\)"),
        (_other_size, "hidden_size 64"),
        (_missing_shard, "model-00009-of-00009"),
        (_outside_shard, "'../model.safetensors'"),
        (_remote_code, "auto_map"),
        (_no_config, "config.json"),
        (_truncated, "safetensors"),
        (_other_clip, "hidden_size 64"),
    ],
)
def test_bad_folders_are_refused_and_nothing_is_written(tmp_path, damage, says):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    damage(folder)
    with pytest.raises(InputError, match=says):
        import_published(folder, tmp_path / "ours", options(folder))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published"]


def test_files_that_are_not_read_are_neither_opened_nor_recorded(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense")
    (folder / "optimizer.bin").write_bytes(b"\x80\x04broken")
    lineage = import_published(folder, tmp_path / "ours", options(folder))
    assert [stamp.file for stamp in lineage.sources] == sorted(p.name for p in folder.glob("*.safetensors"))


def test_the_configuration_comes_back_as_it_came(tmp_path):
    folder = write_published(tmp_path / "published", "llm_moe")
    text = (folder / "config.json").read_text().replace(", ", ",   ")
    (folder / "config.json").write_text(text)
    import_published(folder, tmp_path / "ours", options(folder))
    export_published(load_checkpoint(tmp_path / "ours"), tmp_path / "back")
    assert (tmp_path / "back/config.json").read_text() == text


@pytest.mark.parametrize(("top_k", "gate"), [(1, "probability"), (2, "renormalised")])
def test_several_experts_per_token_are_mixed_as_published(top_k, gate):
    section = {"num_experts": 3, "top_k_experts": top_k}
    assert moe_sizes({"moe": section}, where="", layers=2, experts=()).gate == gate


def test_parts_are_left_out_only_when_named(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    _left_over(folder)
    told = []
    import_published(folder, tmp_path / "ours", options(folder, drop=("model.mm_token_compressor.",)), say=told.append)
    assert told == ["left out 1 tensors model.mm_token_compressor.*"]


def test_the_toy_model_survives_the_published_layout(tmp_path, trained):
    told = []
    export_published(load_checkpoint(trained.folder("moe")), tmp_path / "published", say=told.append)
    import_published(tmp_path / "published", tmp_path / "ours", ImportOptions(stage="moe"))
    before, after = load_file(trained.folder("moe") / "model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_checkpoint(tmp_path / "ours").config == load_checkpoint(trained.folder("moe")).config
    assert "have no published name" in told[0]
    names = set(open_tensors(tmp_path / "published"))
    assert "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.1.up_proj.weight" in names
    shutil.rmtree(tmp_path / "published")


HF = {  # published -> as transformers stores LLaVA, older and newer
    "older": {
        "model.vision_tower.vision_tower.": "vision_tower.",
        "model.mm_projector.0.": "multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "multi_modal_projector.linear_2.",
        "lm_head.": "language_model.lm_head.",
        "model.": "language_model.model.",
    },
    "newer": {
        "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "lm_head.": "lm_head.",
        "model.": "model.language_model.",
    },
}


@pytest.mark.parametrize("layout", HF)
def test_llava_as_transformers_stores_it(tmp_path, layout):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    (file,) = folder.glob("*.safetensors")
    absent = ("model.visual_model.", "model.text_hidden_fcs.", "model.region_fea_adapter.")
    plain = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(absent) and "inv_freq" not in name}
    import_published(folder, tmp_path / "whole", options(folder))
    renamed = {}
    for name, tensor in plain.items():
        old, new = next(pair for pair in HF[layout].items() if name.startswith(pair[0]))
        renamed[new + name.removeprefix(old)] = tensor
    save_file(renamed, file)
    (folder / "model.safetensors.index.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))
    import_published(folder, tmp_path / "ours", options(folder, stage="llava"))
    whole, found = load_checkpoint(tmp_path / "whole").tensors(), load_checkpoint(tmp_path / "ours").tensors()
    assert len(found) == len(plain)
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_files_beside_indexed_shards_are_no_shards(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", binary=True)
    torch.save({"model.mm_projector.0.bias": torch.zeros(64)}, folder / "mm_projector.bin")
    import_published(folder, tmp_path / "ours", options(folder))
    found = load_checkpoint(tmp_path / "ours").tensors()["projector.layers.0.bias"]
    assert torch.equal(found, published_state("llm_dense")["model.mm_projector.0.bias"])


def test_sizes_that_a_configuration_leaves_out_are_those_of_the_tensors(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    (folder / "config.json").write_text(json.dumps(kept))
    import_published(folder, tmp_path / "ours", options(folder))
    assert load_checkpoint(tmp_path / "ours").config["model"]["language"]["hf_config"]["intermediate_size"] == 160


def test_the_vision_tower_may_come_from_a_clip_folder(tmp_path):
    folder = write_published(tmp_path / "published", "llm_dense", shards=1)
    import_published(folder, tmp_path / "whole", options(folder))
    (file,) = folder.glob("*.safetensors")
    prefix, state = "model.vision_tower.vision_tower.", load_file(file)
    tower = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    (tmp_path / "clip").mkdir()
    save_file(tower | {"text_model.final_layer_norm.weight": torch.zeros(3)}, tmp_path / "clip/model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(prefix)}, file)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="CLIP tower"):
        import_published(folder, tmp_path / "ours", options(folder))
    import_published(folder, tmp_path / "ours", options(folder, vision=str(tmp_path / "clip")))
    whole, found = load_checkpoint(tmp_path / "whole").tensors(), load_checkpoint(tmp_path / "ours").tensors()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
