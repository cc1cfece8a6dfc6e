"""VQA-RAD conversion."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medplib.data.prepare.audit import audit
from medplib.data.prepare.floor import question_only_floor
from medplib.data.prepare.vqa_rad import convert_vqa_rad
from medplib.data.sources import read_records
from medplib.errors import InputError

SHARED = Path(os.environ.get("MEDPLIB_SHARED", Path(__file__).resolve().parents[5] / "shared"))


def entry(number, question="Is it normal?", answer="Yes", kind="CLOSED", case=None, **more):
    base = {"qid": number, "phrase_type": "freeform", "image_case_url": f"https://x/case?id={number if case is None else case}"}
    base |= {"image_name": f"syn{number}.jpg", "image_organ": "HEAD", "question": question, "answer": answer, "answer_type": kind}
    return base | more


@pytest.fixture
def source(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/syn{number}.jpg")
    return tmp_path


def convert(source, entries, **options):
    (source / "q.json").write_text(json.dumps(entries))
    return convert_vqa_rad(source / "q.json", source / "images", source / "out", **options)


def test_records_and_split_by_case(source):
    entries = [entry(i, case=i // 2) for i in range(20)] + [entry(i, "How many?", 4, "OPEN ", case=i // 2) for i in range(20)]
    summary = convert(source, [*entries, entries[0]], val_fraction=0.3)
    assert (summary.repeated, summary.images) == (1, {"train": 14, "val": 6})
    assert summary.records["val"] == {"grounding": 0, "region": 0, "vqa_closed": 6, "vqa_open": 6, "caption": 0}
    record = read_records(source / "out/train/MeCoVQA-Complex.json")[0]
    assert (record.turns[0].text, record.turns[1].text, record.meta.task) == ("<image>\nHow many?", "4", "vqa_open")
    assert (record.meta.source, record.meta.anatomy) == ("vqa_rad", "head")
    assert read_records(source / "out/train/MeCoVQA-Closed.json")[0].turns[1].text == "yes"
    assert audit(source / "out").issues == ()


@pytest.mark.parametrize("seed", range(5))
def test_cases_that_share_an_image_stay_together(source, seed):
    entries = [entry(i) for i in range(20)] + [entry(i, "Is it so?", case=i + 1) for i in range(0, 18, 3)]
    convert(source, entries, val_fraction=0.4, seed=seed)
    assert audit(source / "out").issues == ()
    patients = [{r.meta.patient for r in read_records(source / f"out/{s}/MeCoVQA-Closed.json")} for s in ("train", "val")]
    assert sum(map(len, patients)) == 14


def test_the_official_test_part_stays_one_and_what_it_shares_is_counted(source, caplog):
    entries = [entry(i) for i in range(10)] + [entry(i, "Is it so?", phrase_type="test_para") for i in range(8, 12)]
    summary = convert(source, entries)
    assert summary.records["test"]["vqa_closed"] == 4
    assert summary.shared_with_test == 2
    assert "2 images of the official test part" in caplog.text


def test_max_side(source):
    convert(source, [entry(0)], max_side=25)
    assert Image.open(next((source / "out/images").iterdir())).size == (25, 15)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image_name": "none.jpg"}, "none.jpg"),
        ({"image_name": "../q.json"}, "inside the data root"),
        ({"answer_type": "MAYBE"}, "MAYBE"),
        ({"image_organ": "FOOT"}, "FOOT"),
        ({"answer": "  "}, "answer with words"),
        ({"question": "a <SEG>"}, "without tags"),
        ({"question": None}, "no question"),
    ],
)
def test_bad_entries_are_named(source, bad, message):
    with pytest.raises(InputError, match=r"q\.json\[1\]") as caught:
        convert(source, [entry(0), entry(1, **{}) | bad])
    assert message in str(caught.value)
    assert not (source / "out").exists()


@pytest.mark.skipif(not (SHARED / "data/vqa_rad/vqa_rad_train.json").is_file(), reason="real data not here")
def test_real_questions(tmp_path):
    entries = json.loads((SHARED / "data/vqa_rad/vqa_rad_train.json").read_text())
    names = sorted({item["image_name"] for item in entries})[:60]
    (tmp_path / "q.json").write_text(json.dumps([item for item in entries if item["image_name"] in names]))
    summary = convert_vqa_rad(tmp_path / "q.json", SHARED / "data/vqa_rad/images", tmp_path / "out", 0.25, max_side=64)
    assert sum(summary.images.values()) == 60
    floor = question_only_floor(*(read_records(tmp_path / f"out/{s}/MeCoVQA-Closed.json") for s in ("train", "val")))
    assert 0.2 < floor.majority < 0.9
    assert 0.2 < floor.logistic < 0.9
