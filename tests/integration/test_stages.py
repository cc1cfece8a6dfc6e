"""All stages at toy size through the real command: what they write, what they refuse, and that experts are what they were copied from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medplib.data.collate import Collator
from medplib.data.dataset import FileCache, load_records
from medplib.data.encode import SampleEncoder
from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.fit import main
from medplib.lineage import ancestry, load_checkpoint
from medplib.models.build import input_spec
from medplib.models.load import load_model
from medplib.models.moe import MoEConfig, forced_expert
from medplib.tokens import SEG
from medplib.training.assemble import assemble
from medplib.training.stage import InitConfig, LoraOptions, Parent, StageConfig


def _stage4(trained: Trained, **changes) -> StageConfig:
    def parent(name: str) -> Parent:
        return Parent(str(trained.folder(name)), name)

    init = InitConfig(
        base=parent("vl_expert"),
        parts={p: parent("grounding_expert") for p in ("grounder", "names", "seg_projector")},
        experts=changes.get("experts", {"grounding": parent("grounding_expert"), "vl": parent("vl_expert")}),
        token_rows=parent("grounding_expert"),
        fresh=changes.get("fresh", ("router",)),
    )
    return StageConfig(name="moe", output="unused", init=init, moe=MoEConfig(), train=("router",), lora=LoraOptions(r=2))


def _batch(trained: Trained, model_config, tokenizer, task: str):
    encoder = SampleEncoder(tokenizer=tokenizer, spec=input_spec(model_config, with_sam=True))
    records = read_records(trained.data / f"{task}.json")[:6]
    cache = FileCache(16)
    return Collator(encoder.text)([encoder.encode(load_records((record,), cache)) for record in records])


@pytest.mark.parametrize(("expert", "parent", "task"), [("grounding", "grounding_expert", "grounding"), ("vl", "vl_expert", "vqa_closed")])
def test_forced_expert_is_the_stage_it_was_copied_from(trained: Trained, expert: str, parent: str, task: str) -> None:
    """Before stage IV trains. The <SEG> column of the head belongs to stage III alone, so it is left out against stage II."""
    assembled = assemble(_stage4(trained))
    model = assembled.model.eval()
    reference, tokenizer, _ = load_model(load_checkpoint(trained.folder(parent)))
    batch = _batch(trained, assembled.config, tokenizer, task)
    with torch.no_grad(), forced_expert(model.language.routing, model.language.expert_names, expert):
        mine, theirs = model(batch), reference(batch)
    keep = torch.ones(mine.label_logits.shape[1], dtype=torch.bool)
    keep[tokenizer.convert_tokens_to_ids(SEG)] = parent == "grounding_expert"
    assert torch.allclose(mine.label_logits[:, keep], theirs.label_logits[:, keep], atol=1e-5, rtol=0)
    if task == "grounding":
        assert torch.allclose(mine.grounding.mask_logits, theirs.grounding.mask_logits, atol=1e-5, rtol=0)


def test_vision_encoder_is_a_copy_of_the_grounders(trained: Trained) -> None:
    """What it was copied from did not train afterwards: the features that the language side sees are those that masks are drawn from."""
    dense, language = load_checkpoint(trained.folder("dense0")).tensors(), load_checkpoint(trained.folder("moe")).tensors()
    copied = {
        name: tensor for name, tensor in language.items() if name.startswith(("vision.backbone.image_encoder.", "vision.backbone.up"))
    }
    assert len(copied) > 20
    for name, tensor in copied.items():
        assert torch.equal(tensor, dense[name.replace("vision.backbone.", "grounder.")])


def test_router_left_alone_is_not_a_forced_expert(trained: Trained) -> None:
    model, tokenizer, config = load_model(load_checkpoint(trained.folder("moe")))
    batch = _batch(trained, config, tokenizer, "grounding")
    with torch.no_grad():
        free = model(batch)
        with forced_expert(model.language.routing, model.language.expert_names, "vl"):
            forced = model(batch)
    assert free.router is not None
    assert free.router.chosen.shape[1] == int(batch.attention_mask.sum())  # padding is not routed
    assert forced.router is None
    assert not torch.allclose(free.label_logits, forced.label_logits, atol=1e-5)


def test_only_what_a_stage_trains_changes(trained: Trained) -> None:
    before = load_checkpoint(trained.folder("vl_expert")).tensors()
    after = load_checkpoint(trained.folder("grounding_expert")).tensors()
    tokenizer = load_model(load_checkpoint(trained.folder("moe")))[1]
    row = tokenizer.convert_tokens_to_ids(SEG)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    tables = {"language.model.model.embed_tokens.weight", "language.model.lm_head.weight"}
    assert changed - tables == {n for n in before if ".mlp." in n and n.startswith("language.")}
    for table in tables & changed:
        rows = (before[table] != after[table]).any(dim=1).nonzero().flatten().tolist()
        assert rows == [row]
    assert "language.model.lm_head.weight" in changed  # B8: the <SEG> row is trained in stage III


def test_lineage_names_every_ancestor(trained: Trained) -> None:
    lines = ancestry(load_checkpoint(trained.folder("moe")).lineage)
    text = "\n".join(lines)
    for role in ("base <- vl_expert", "expert:grounding <- grounding_expert", "expert:vl <- vl_expert", "token_rows <- grounding_expert"):
        assert role in text
    assert "base <- vision0" in text
    full = [line.split("weights ")[1].split()[0] for line in lines if " trained " in line]
    assert len(full) == len(set(full)) == 7  # every checkpoint once, further mentions point up
    assert any(line.endswith("(see above)") for line in lines)
    assert str(trained.checkpoints) not in text


def test_tensorboard_shows_terms_rates_router_and_masks(trained: Trained) -> None:
    """Of the last stage: every loss term, learning rates by group, <SEG> rates, router shares by task, and pictures of masks; every stage
    has a folder of its own.
    """
    stages = trained.checkpoints / "logs" / trained.checkpoints.name
    assert {folder.name for folder in stages.iterdir()} == {folder.name for folder in trained.checkpoints.iterdir()} - {"logs"}
    events = EventAccumulator(str(stages / "moe" / "version_0"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    expected = {"train/lm", "train/decision", "train/mask_dice", "train/router", "train/loss", "lr/all_else", "val/seg_rate_present"}
    assert expected | {"val/router/grounding/vl", "val/router/grounding/grounding"} <= scalars
    assert events.Tags()["images"] == ["val/masks"]


def test_same_seed_same_weights(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load((trained.configs / "grounder0.yaml").read_text())
    config["model"]["stage"]["output"] = str(tmp_path / "again")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    main(["--config", str(tmp_path / "c.yaml")])
    first = load_checkpoint(trained.folder("grounder0")).lineage.weights_sha256
    assert load_checkpoint(tmp_path / "again").lineage.weights_sha256 == first


def test_finished_stage_is_skipped_and_a_changed_one_is_not(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--config", str(trained.configs / "align.yaml"), "--if_finished", "skip"]
    caplog.set_level("INFO")
    main(arguments)
    assert "up to date" in caplog.text
    caplog.clear()
    main([*arguments, "--model.stage.optim.lr", "0.0005", "--model.stage.output", str(trained.checkpoints / "align2")])
    assert "up to date" not in caplog.text


def test_finished_means_from_these_very_data(trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two folders with files of one name are both known, and a changed file is another stage."""
    one, two = (Path(shutil.copytree(trained.data, tmp_path / name)) / "caption.json" for name in ("one", "two"))
    two.write_text(json.dumps(json.loads(two.read_text())[:-1]))
    arguments = ["--config", str(trained.configs / "align.yaml"), "--model.stage.output", str(tmp_path / "out"), "--if_finished", "skip",
                 "--data.train", f"[{one}, {two}]"]  # fmt: skip
    main(arguments)
    caplog.set_level("INFO")
    caplog.clear()
    main(arguments)
    assert "up to date" in caplog.text
    caplog.clear()
    one.write_text(json.dumps(json.loads(one.read_text())[:-2]))
    main(arguments)
    assert "up to date" not in caplog.text


def _copy(trained: Trained, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder(name), tmp_path / name))


def _flip_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _drop(name: str):
    return lambda folder: (folder / name).unlink()


def _edit_lineage(folder: Path) -> None:
    (folder / "lineage.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip_byte, "SHA-256"),
        (_drop("config.json"), "config.json"),
        (_drop("lineage.json"), "lineage.json"),
        (_edit_lineage, "lineage of a stage"),
    ],
)
def test_damaged_checkpoint_is_refused(trained: Trained, tmp_path: Path, damage, words: str) -> None:
    folder = _copy(trained, "moe", tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_checkpoint(folder)


def test_swapped_experts_are_refused(trained: Trained) -> None:
    swapped = {
        "grounding": Parent(str(trained.folder("vl_expert")), "grounding_expert"),
        "vl": Parent(str(trained.folder("grounding_expert")), "vl_expert"),
    }
    with pytest.raises(InputError, match=r"stage 'grounding_expert'.*found stage 'vl_expert'"):
        assemble(_stage4(trained, experts=swapped))


def test_part_from_nowhere_is_refused(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"missing, such as .*router"):
        assemble(_stage4(trained, fresh=()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model.stage.train", "[projektor]"], "projektor"),
        (["--model.stage.init.base.stage", "moe"], "stage 'moe'"),
        (["--data.train", "[nowhere.json]"], "nowhere.json"),
        (["--model.stage.colour", "blue"], "colour"),
        (["--model.stage.objective", "dense"], "a model with grounder, names, found none of grounder, names"),
        (["--model.stage.init.experts", '{"vl": {"path": "x", "stage": "y"}}'], "expert"),
    ],
)
def test_bad_configuration_is_one_line(trained: Trained, change: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        main(["--config", str(trained.configs / "align.yaml"), *change])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_predict_png_and_volume(trained: Trained, tmp_path: Path) -> None:
    import nibabel as nib

    from medplib.predict import predict

    image = next((trained.data / "images").glob("*.png"))
    predict(trained.folder("moe"), image, "Segment the bright disc.", tmp_path / "png")
    answer = json.loads((tmp_path / "png" / "answer.json").read_text())
    assert answer["geometry"].startswith("identity")
    assert (tmp_path / "png" / "overlay.png").exists()
    affine = np.array([[0, 1.2, 0.2, 3], [0.9, 0, 0, -4], [0, 0.1, 2.5, 7], [0, 0, 0, 1]])
    volume = nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 24, 5)).astype(np.float32), affine)
    volume.set_sform(affine, 1)
    nib.save(volume, tmp_path / "scan.nii.gz")
    predict(trained.folder("moe"), tmp_path / "scan.nii.gz", "Segment the grey ring.", tmp_path / "volume", axis="2", slices="1:3")
    found = json.loads((tmp_path / "volume" / "answer.json").read_text())
    assert [s["slice"] for s in found["slices"]] == [1, 2, 3]
    for mask in found["masks"]:
        written = nib.load(tmp_path / "volume" / mask["file"])
        assert written.shape == (20, 24, 5)
        assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    with pytest.raises(InputError, match="new or empty folder"):
        predict(trained.folder("moe"), image, "Again?", tmp_path / "png")


def test_region_questions_use_their_region(trained: Trained) -> None:
    from medplib.inference.ask import conversation
    from medplib.inference.predictor import Predictor

    predictor = Predictor(trained.folder("moe"))
    encoder = predictor.encoder()
    image = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    left, right = np.zeros((60, 50), bool), np.zeros((60, 50), bool)
    left[20:30, 5:15], right[20:30, 35:45] = True, True
    question = "What is in the area <region></region>?"
    samples = [encoder.encode(conversation(image, question, [mask])) for mask in (left, right)]
    embeds = [predictor.model.embed(predictor.collator(encoder)([sample])) for sample in samples]
    assert not torch.allclose(*embeds)
    with pytest.raises(InputError, match="regions for its tags"):
        conversation(image, "Compare <region></region> and <region></region>.", [left])


def test_evaluation_resumes_and_is_the_same(trained: Trained, tmp_path: Path) -> None:
    from medplib.evaluation.runner import RunOptions, evaluate_records
    from medplib.inference.predictor import Predictor

    predictor = Predictor(trained.folder("moe"), max_new_tokens=8)
    records = read_records(trained.data / "grounding.json")[:9] + read_records(trained.data / "region.json")[:5]
    options = RunOptions(batch_size=4, progress="")
    whole = evaluate_records(predictor, records, options, out=tmp_path / "whole")
    evaluate_records(predictor, records, options, out=tmp_path / "cut")
    lines = (tmp_path / "cut" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "predictions.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # cut off in the middle of a line
    again = evaluate_records(predictor, records, options, out=tmp_path / "cut")
    # Equal images are encoded once per batch, and batches differ behind the cut: the last bits of a predicted quality may, too.
    assert [replace(score, quality=None) for score in again.grounding] == [replace(score, quality=None) for score in whole.grounding]
    assert [s.quality for s in again.grounding if s.quality] == pytest.approx([s.quality for s in whole.grounding if s.quality], rel=1e-4)
    assert [a.text for a in again.answers] == [a.text for a in whole.answers]
    with pytest.raises(InputError, match="another run"):
        evaluate_records(predictor, records[:3], options, out=tmp_path / "cut")


def test_batch_size_does_not_change_answers(trained: Trained) -> None:
    from medplib.evaluation.runner import RunOptions, evaluate_records
    from medplib.inference.predictor import Predictor

    predictor = Predictor(trained.folder("moe"), max_new_tokens=8)
    records = read_records(trained.data / "grounding.json")[:6] + read_records(trained.data / "vqa_closed.json")[:6]
    one, many = (evaluate_records(predictor, records, RunOptions(batch_size=n, progress="")) for n in (1, 12))
    assert [a.text for a in one.answers] == [a.text for a in many.answers]
    assert np.allclose([g.dice for g in one.grounding], [g.dice for g in many.grounding], atol=1e-3)
