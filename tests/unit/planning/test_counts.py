"""Sizes of the full-size stages, pinned: published trainable counts (33.5 M in stage III, 318 M in stage IV) and parts of the 7B model."""

from pathlib import Path

import pytest

from medplib.errors import InputError
from medplib.planning.parameters import count_parameters, empty_model
from medplib.planning.resolve import plan_stage

ROOT = Path(__file__).parents[3] / "configs"
STAGE1, STAGE3 = "stages/stage1_align.yaml", "stages/stage3_grounding.yaml"


def counted(*files: str) -> dict[str, tuple[int, int]]:
    planned = plan_stage([ROOT / file for file in files], vocab_size=None)
    rows = planned.model.language.vocab_size if planned.model.language is not None else 1
    parts = count_parameters(empty_model(planned.stage, planned.model, vocab_size=rows))
    return {part.part: (part.total, part.trained) for part in parts}


PINNED = {  # files -> parameters without adapters, trained
    ("stages/stage0_sam_med2d.yaml",): (271_241_776, 184_569_136),
    (STAGE1,): (7_069_288_448, 20_979_712),
    ("stages/stage2_vl.yaml",): (7_069_288_448, 329_752_576),
    (STAGE3,): (7_358_360_368, 33_496_548),
    ("stages/stage4_moe.yaml",): (11_687_144_240, 318_074_340),
    ("stages/stage4_moe.yaml", "parts/train_token_rows.yaml"): (11_687_144_240, 53_751_268),
    (STAGE3, "parts/train_sam_adapters.yaml"): (7_358_360_368, 214_001_124),
    (STAGE1, "parts/language_vicuna_7b.yaml"): (7_067_101_184, 20_979_712),
    (STAGE1, "parts/language_qwen2_5_7b.yaml"): (7_939_319_808, 16_522_240),
    (STAGE1, "parts/language_qwen3_8b.yaml"): (8_519_420_928, 20_979_712),
    (STAGE1, "parts/language_mistral_7b.yaml"): (7_576_709_120, 20_979_712),
    (STAGE1, "parts/language_qwen2_5_7b.yaml", "parts/vision_dinov2_b518.yaml"): (7_720_557_056, 15_604_736),
    (STAGE3, "parts/grounder_sam_b.yaml"): (7_180_854_064, 33_496_548),
    (STAGE3, "parts/grounder_sam_l.yaml"): (7_399_461_424, 33_496_548),
    (STAGE3, "parts/grounder_sam_h.yaml"): (7_728_209_200, 33_496_548),
}


@pytest.mark.parametrize("files", PINNED, ids=lambda files: "+".join(Path(f).stem for f in files))
def test_parameters(files):
    parts = counted(*files)
    total = sum(total for name, (total, _) in parts.items() if name not in ("lora", "token_rows"))
    assert (total, sum(trained for _, trained in parts.values())) == PINNED[files]


PUBLISHED = {  # files, parts -> what the authors of the part count
    ((STAGE1, "parts/language_qwen2_5_7b.yaml"), "language."): 7_615_616_512,
    ((STAGE1, "parts/language_vicuna_7b.yaml"), "language."): 6_738_415_616,
    ((STAGE1, "parts/language_mistral_7b.yaml"), "language."): 7_248_023_552,
    ((STAGE1, "parts/language_qwen3_8b.yaml"), "language."): 8_190_735_360,
    ((STAGE3, "parts/grounder_sam_b.yaml"), "grounder."): 93_735_472,
    ((STAGE3, "parts/grounder_sam_l.yaml"), "grounder."): 312_342_832,
    ((STAGE3, "parts/grounder_sam_h.yaml"), "grounder."): 641_090_608,
}


@pytest.mark.parametrize(("files", "prefix"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else value[1])
def test_parts_have_their_published_size(files, prefix):
    assert sum(total for part, (total, _) in counted(*files).items() if part.startswith(prefix)) == PUBLISHED[files, prefix]


def test_published_parts_of_the_mixture():
    parts = counted("stages/stage4_moe.yaml")
    assert parts["lora"] == (27_394_048, 27_394_048)
    assert parts["router"] == (32 * 2 * 4096, 32 * 2 * 4096)
    assert parts["language.mlp"][0] == 2 * 32 * 3 * 4096 * 11008
    assert parts["projector"][0] == 20_979_712  # 20.98 M
    assert parts["seg_projector"][0] == 17_830_144  # 17.83 M
    assert parts["grounder.mask_decoder.heads"][0] + parts["grounder.mask_decoder.transformer"][0] == 4_058_340  # 4.06 M
    assert parts["language.head"][0] == 32267 * 4096


def test_every_full_size_config_is_pinned():
    used = {ROOT / file for files in PINNED for file in files}
    shipped = {file for folder in ("stages", "parts") for file in (ROOT / folder).glob("*.yaml")}
    assert {file for file in shipped if not file.name.startswith("strategy_")} <= used  # which change no size


def test_a_parent_from_nowhere_is_named(tmp_path):
    text = (ROOT / STAGE3).read_text()
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "stage3.yaml").write_text(text)
    with pytest.raises(InputError, match="checkpoints/medplib_7b/stage2_vl"):
        plan_stage([tmp_path / "stages" / "stage3.yaml"], vocab_size=None)
