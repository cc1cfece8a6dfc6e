"""Controls that need no model (question-only floor, mean mask) and the union of instance masks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from medplib.data.prepare.floor import question_only_floor
from medplib.data.prepare.mean_mask import mean_mask_dice, mean_masks
from medplib.data.prepare.merge_masks import merge_masks
from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.imaging.mask import read_mask, write_mask_png
from medplib.types import Meta, Record, Target, Turn


def closed(*pairs):
    turns = tuple(turn for q, a in pairs for turn in (Turn("human", q), Turn("gpt", a)))
    return Record("r", (Path("x.png"),), turns, meta=Meta(task="vqa_closed"))


def test_floor_on_questions_that_tell_and_that_do_not():
    train = [closed(("<image>\nIs the liver there?", "Yes"))] * 6 + [closed(("<image>\nIs the tumour there?", "no"))] * 4
    train.append(Record("o", (Path("x.png"),), (Turn("human", "Why?"), Turn("gpt", "because")), meta=Meta(task="vqa_open")))
    val = [closed(("Is the liver  there?", "yes"), ("Is the tumour there?", "no")), closed(("Is a large tumour there?", "no"))]
    floor = question_only_floor(train, val)
    assert (floor.n_train, floor.n_val, floor.majority_answer) == (10, 3, "yes")
    assert floor.majority == pytest.approx(1 / 3)
    assert floor.per_question == pytest.approx(2 / 3)  # the third question is new and gets the majority answer
    assert floor.logistic == 1.0


def test_floor_is_at_chance_when_questions_do_not_tell():
    rng = np.random.default_rng(0)
    train = [closed((f"Is the {rng.choice(['liver', 'spleen'])} there?", rng.choice(["yes", "no"]))) for _ in range(400)]
    val = [closed((f"Is the {name} there?", answer)) for name in ("liver", "spleen") for answer in ("yes", "no")]
    floor = question_only_floor(train, val)
    assert floor.majority == floor.per_question == floor.logistic == 0.5
    with pytest.raises(InputError, match="closed questions"):
        question_only_floor(train, [])


def grounding(name, mask):
    return Record("r", (Path("x.png"),), (Turn("human", "<image>"), Turn("gpt", "<SEG>")), (Target(name, mask), Target("gone", None)))


def box(path, rows, columns, size=(32, 64)):
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    write_mask_png(mask, path)
    return path


def test_mean_masks_average_in_a_common_square(tmp_path):
    left = box(tmp_path / "l.png", slice(None), slice(0, 32))
    top = box(tmp_path / "t.png", slice(0, 50), slice(None), size=(100, 20))
    means = mean_masks([grounding("a", left), grounding("a", top), grounding("a", top)], grid=8)
    assert means.keys() == {"a"}
    expected = np.zeros((8, 8))
    expected[:4] += 0.5
    expected[:, :4] += 0.5
    np.testing.assert_allclose(means["a"], expected, atol=1e-6)


def test_mean_mask_dice(tmp_path):
    train = [box(tmp_path / f"{i}.png", slice(8, 24), slice(16, 32)) for i in range(2)]
    train.append(box(tmp_path / "wide.png", slice(8, 24), slice(16, 48)))
    same = box(tmp_path / "same.png", slice(16, 48), slice(32, 96), size=(64, 128))
    half = box(tmp_path / "half.png", slice(8, 24), slice(16, 32))
    result = mean_mask_dice(
        [grounding("a", path) for path in train], [grounding("a", same), grounding("a", half), grounding("b", half)], 32
    )
    by_name = {row.name: row for row in result.names}
    assert by_name["a"].n == 2
    assert by_name["a"].dice == pytest.approx((1 + 2 / 3) / 2, abs=0.03)
    assert by_name["a"].threshold > 1 / 3  # what only the wide one covers is cut away
    assert (by_name["b"].dice, by_name["b"].seen) == (0.0, False)
    assert result.mean == pytest.approx(by_name["a"].dice * 2 / 3)
    assert result.macro == pytest.approx(by_name["a"].dice / 2)


def ask(root, *names):
    texts = [f"<SEG><mask>masks_merged/{name}_merged.png</mask>" for name in names]
    talks = [[{"from": "human", "value": "<image>\nSegment the cell."}, {"from": "gpt", "value": text}] for text in texts]
    (root / "train").mkdir(exist_ok=True)
    file = root / "train/g.json"
    file.write_text(json.dumps([{"id": "r", "image": "images/a.png", "conversations": talk} for talk in talks]))
    return file


def test_unions_are_made_once_and_read(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((32, 64, 3), np.uint8))
    stem = "mr_t1--set--c1--x_0001"
    for i in range(3):
        box(tmp_path / f"masks/{stem}--0002_00{i}.png", slice(4 * i, 4 * i + 2), slice(0, 10))
    box(tmp_path / f"masks/{stem}--0003_000.png", slice(20, 30), slice(0, 10))
    file = ask(tmp_path, f"{stem}--0002")
    with pytest.raises(InputError, match="merge_masks"):
        read_records(file)
    summary = merge_masks([file], tmp_path)
    assert (summary.written, summary.existing, summary.without_instances) == (1, 0, ())
    union = read_mask(read_records(file)[0].targets[0].mask, size=(32, 64))
    assert union.sum() == 60
    assert union[[0, 1, 4, 5, 8, 9], :10].all()
    file = ask(tmp_path, f"{stem}--0002", f"{stem}--0009")
    summary = merge_masks([file], tmp_path)
    assert (summary.written, summary.existing, summary.without_instances) == (0, 1, (f"{stem}--0009",))
    assert "1 unions cannot be made" in caplog.text


def test_unions_refuse_what_does_not_fit(tmp_path):
    box(tmp_path / "masks/a--0002_000.png", slice(0, 2), slice(0, 2))
    box(tmp_path / "masks/a--0002_001.png", slice(0, 2), slice(0, 2), size=(10, 10))
    with pytest.raises(InputError, match="a--0002_001"):
        merge_masks([ask(tmp_path, "a--0002")], tmp_path)
    with pytest.raises(InputError, match="inside the data root"):
        merge_masks([ask(tmp_path, "../../a--0002")], tmp_path)
    assert not list(tmp_path.glob("masks_merged/*"))
