"""Reading and writing of MeCoVQA files: the published form, its oddities, our meta, bad input, round trips."""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medplib.data.sources import read_mecovqa, read_records, write_mecovqa
from medplib.data.sources.mecovqa import is_missing_file, parse_mecovqa
from medplib.errors import InputError
from medplib.types import Meta, Record, Target, Turn

SHARED = Path(os.environ.get("MEDPLIB_SHARED", Path(__file__).resolve().parents[5] / "shared"))
STEM = "ct_00--AMOS2022--amos_0001--x_0020"


@pytest.fixture
def root(tmp_path):
    files = [f"images/{STEM}.png", "images/b.png", f"masks/{STEM}--0005_000.png", "masks/m1.png", "masks/m2.png", "masks_merged/u.png"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def talk(*texts, image=f"images/{STEM}.png", **more):
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "r1", "image": image, "conversations": turns, **more}


def read(root, *items):
    file = root / "data.json"
    file.write_text(json.dumps(items))
    return read_mecovqa(file, root)


def test_grounding_strips_the_path_and_names_the_target(root):
    (record,) = read(root, talk("<image>\nCould you segment out the liver in this image?", "It is <SEG><mask>masks/m1.png</mask>."))
    assert record.turns == (Turn("human", "<image>\nCould you segment out the liver in this image?"), Turn("gpt", "It is <SEG>."))
    assert record.targets == (Target("liver", root / "masks/m1.png", 0, 1),)
    assert record.meta == Meta("AMOS2022", "ct", "", "grounding", "AMOS2022--amos_0001", ())


def test_region_path_moves_to_regions(root):
    (record,) = read(root, talk("<image>\nWhat is in <region>masks/m1.png</region>?", "The liver."))
    assert record.turns[0].text == "<image>\nWhat is in <region></region>?"
    assert record.regions == (root / "masks/m1.png",)
    assert record.meta.task == "region"


def test_missing_png_suffix_is_completed(root):
    (record,) = read(root, talk("<image>\nSegment it.", "<SEG><mask>masks/m1</mask>", image=f"images/{STEM}"))
    assert record.images == (root / f"images/{STEM}.png",)
    assert record.targets[0].mask == root / "masks/m1.png"


def test_several_masks_turns_and_images(root):
    item = talk(
        "<image> and <image>\nSegment the liver and the spleen.",
        "liver <SEG><mask>masks/m1.png</mask>, spleen <SEG><mask>masks/m2.png</mask>.",
        "Is it large?",
        "yes",
        "Please segment the left kidney.",
        "<SEG><mask>masks_merged/u.png</mask>",
        image=["images/b.png", f"images/{STEM}.png"],
    )
    (record,) = read(root, item)
    assert [(t.name, t.mask.name, t.image_index, t.turn) for t in record.targets] == [
        ("liver", "m1.png", 1, 1),
        ("spleen", "m2.png", 1, 1),
        ("left kidney", "u.png", 1, 5),
    ]
    assert record.turns[1].text == "liver <SEG>, spleen <SEG>."


def test_name_from_the_class_table_when_the_question_has_none(root):
    item = talk("<image>\nSegment it.", f"<SEG><mask>masks/{STEM}--0005_000.png</mask>")
    assert read(root, item)[0].targets[0].name == "class 0005"
    (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps({"AMOS2022": {"right_kidney": 5}, "other": {"tumor": 5}}))
    assert read(root, item)[0].targets[0].name == "right kidney"


def test_meta_is_taken_over(root):
    meta = {"source": "s", "modality": "CT", "anatomy": "abdomen", "task": "grounding", "patient": "p", "present": ["liver"]}
    meta["targets"] = [{"name": "spleen", "mask": None, "turn": 1}, {"name": "liver", "mask": "masks/m1.png", "turn": 1}]
    (record,) = read(root, talk("<image>\nSegment the spleen and the liver.", "no spleen, liver <SEG>.", meta=meta))
    assert record.meta == Meta("s", "CT", "abdomen", "grounding", "p", ("liver",))
    assert record.targets == (Target("spleen", None), Target("liver", root / "masks/m1.png"))


@pytest.mark.parametrize(("kind", "task"), [("closed", "vqa_closed"), ("OPEN", "vqa_open"), (None, "vqa_open")])
def test_task_from_answer_type(root, kind, task):
    more = {} if kind is None else {"answer_type": kind}
    assert read(root, talk("<image>\nIs it?", "yes", **more))[0].meta.task == task


def test_unknown_meta_is_counted_and_logged(root, caplog):
    read(root, *[talk("<image>\nIs it?", "yes", meta={"colour": 1})] * 3)
    assert "3 records" in caplog.text
    assert "'colour'" in caplog.text


ASK = "<image>\nSegment the liver."
BAD = [
    (talk(ASK, "<SEG><mask>masks/none.png</mask>"), "masks/none.png"),
    (talk(ASK, "<SEG><mask>../../etc/passwd</mask>"), "inside the data root"),
    (talk(ASK, "<SEG><mask>/etc/passwd</mask>"), "inside the data root"),
    (talk(ASK, "<SEG><mask>/passwd</mask>"), "inside the data root"),
    (talk(ASK, "<SEG><mask>masks/..</mask>"), "nothing there"),
    (talk(ASK, "<SEG><mask></mask>"), "a path relative"),
    (talk(ASK, "<SEG><mask>a\0b</mask>"), "a path relative"),
    (talk(ASK, "<SEG>"), "0 paths for 1 <SEG>"),
    (talk(ASK, "<SEG> <SEG><mask>masks/m1.png</mask>"), "1 paths for 2 <SEG>"),
    (talk(ASK, "<SEG><mask>masks/m1.png"), "<mask>"),
    (talk(ASK, "a <region>masks/m1.png</region>"), "<region>"),
    (talk(ASK + " <SEG>", "yes"), "<SEG>"),
    (talk("<image>\n<region>masks/m1.png", "yes"), "<region>"),
    (talk("No picture?", "yes"), "0 for 1 images"),
    (talk("<image><image>", "yes"), "2 for 1 images"),
    (talk("<image>", "yes", image=[]), "an entry 'image'"),
    (talk("<image>", "yes", image=7), "a path relative"),
    (talk("<image>\nQ"), "question and answer"),
    (talk("<image>", "yes", answer_type="maybe"), "'maybe'"),
    (talk("<image>", "yes", meta={"task": "dance"}), "'dance'"),
    (talk("<image>", "yes", meta={"patient": 5}), "meta.patient"),
    (talk("<image>", "yes", meta={"present": "liver"}), "meta.present"),
    (talk("<image>", "yes", meta=[]), "JSON object"),
    (talk(ASK, "no", meta={"targets": [{"name": "liver", "mask": "masks/m1.png", "turn": 1}]}), "0 for 1 targets"),
    (talk(ASK, "no", meta={"targets": [{"name": "liver", "mask": None, "turn": 2}]}), "odd turn"),
    (talk(ASK, "no", meta={"targets": [{"name": " ", "mask": None}]}), "a target with a name"),
    (talk(ASK, "no", meta={"targets": [{"name": "liver", "mask": None, "image_index": 1}]}), "in one of 1 images"),
    (
        talk(ASK, "<SEG><mask>masks/m1.png</mask>", meta={"targets": [{"name": "liver", "mask": "masks/m2.png"}]}),
        "to be those of meta.targets",
    ),
    ({"id": "r1", "image": "images/b.png"}, "'conversations'"),
    ({"id": "r1", "image": "images/b.png", "conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}, "'human'"),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_bad_records_are_named(root, item, message):
    good = talk("<image>\nIs it?", "yes")
    with pytest.raises(InputError) as caught:
        read(root, good, copy.deepcopy(item), good)
    text = str(caught.value)
    assert message in text
    assert "data.json[1] r1" in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1]", "[" * 100_000])
def test_files_that_are_no_conversations(root, text):
    (root / "data.json").write_text(text)
    with pytest.raises(InputError, match=r"data\.json"):
        read_mecovqa(root / "data.json", root)


def test_link_that_leads_outside_is_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.touch()
    (root / "masks/link.png").symlink_to(outside)
    (root / "far").symlink_to(outside.parent)
    known = talk(ASK, "<SEG><mask>masks/m1.png</mask>")  # so that the folder's listing is there already
    for path in ("masks/link.png", "far/secret.png"):
        with pytest.raises(InputError, match="inside the data root"):
            read(root, known, talk(ASK, f"<SEG><mask>{path}</mask>"))


def test_missing_files_are_counted_and_told_apart(root):
    missing = talk(ASK, "<SEG><mask>masks/none.png</mask>")
    with pytest.raises(InputError, match=r"and 2 more of 4 records.*audit"):
        read(root, missing, talk("<image>\nIs it?", "yes"), missing, talk("<image>", "yes", meta=[]))
    parsed = parse_mecovqa(root / "data.json", root)
    assert [(p.index, is_missing_file(p)) for p in parsed.problems] == [(0, True), (2, True), (3, False)]
    assert [index for index, _ in parsed.records] == [1]


def test_a_folder_is_listed_once_not_once_per_record(root, monkeypatch):
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    read(root, *[talk(ASK, "<SEG><mask>masks/m1.png</mask>")] * 50)
    assert len(calls) == 2


def test_read_records_finds_root_and_format(root):
    (root / "train").mkdir()
    file = root / "train/a.json"
    file.write_text(json.dumps([talk("<image>\nIs it?", "yes")]))
    assert read_records(file) == read_records(file, root, "mecovqa") == read_mecovqa(file, root)
    with pytest.raises(InputError, match="auto, mecovqa"):
        read_records(file, root, "guess")
    file.write_text(json.dumps([{"qid": 1, "image_name": "x"}]))
    with pytest.raises(InputError, match="prepare vqa_rad"):
        read_records(file)
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/x.json").write_text("[]")
    with pytest.raises(InputError, match="images/"):
        read_records(root / "a/b/c/x.json")


WORDS = st.text(alphabet="abc é,.?:\n", max_size=12)
NAME = st.sampled_from(["liver", "left kidney", "x (1)"])


@st.composite
def records(draw, root):
    images = draw(st.lists(st.sampled_from([root / "images/b.png", root / f"images/{STEM}.png"]), min_size=1, max_size=2))
    masks = st.sampled_from([root / "masks/m1.png", root / "masks/m2.png", root / "masks_merged/u.png"])
    turns, targets, regions = [], [], []
    for pair in range(draw(st.integers(1, 2))):
        asked = draw(st.lists(masks, max_size=2))
        regions += asked
        start = "<image>\n" * len(images) if pair == 0 else ""
        turns.append(Turn("human", start + draw(WORDS) + "".join(f"<region></region>{draw(WORDS)}" for _ in asked)))
        named = draw(st.lists(st.tuples(NAME, st.none() | masks), max_size=3))
        targets += [Target(name, mask, draw(st.integers(0, len(images) - 1)), 2 * pair + 1) for name, mask in named]
        turns.append(Turn("gpt", draw(WORDS) + "".join(f"<SEG>{draw(WORDS)}" for _, mask in named if mask)))
    task = draw(st.sampled_from(["caption", "vqa_closed", "vqa_open", "region", "grounding"]))
    meta = Meta(draw(WORDS), draw(WORDS), draw(WORDS), task, draw(WORDS), tuple(draw(st.lists(NAME, max_size=2))))
    return Record(draw(st.text("ab", min_size=1, max_size=3)), tuple(images), tuple(turns), tuple(targets), tuple(regions), meta)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_reads_back_the_same(root, data):
    written = data.draw(st.lists(records(root), max_size=3))
    write_mecovqa(written, root / "train/out.json", root)
    assert read_mecovqa(root / "train/out.json", root) == written


def test_writer_refuses_what_cannot_be_read_back(root, tmp_path_factory):
    turns = (Turn("human", "<image>\nSegment it."), Turn("gpt", "<SEG>"))
    image = root / "images/b.png"
    far = tmp_path_factory.mktemp("far") / "m.png"
    for targets, message in (((), "more tags"), ((Target("a", image), Target("b", image)), "fewer tags"), ((Target("a", far),), "below")):
        with pytest.raises(InputError, match=message):
            write_mecovqa([Record("r", (image,), turns, targets)], root / "out.json", root)
        assert not (root / "out.json").exists()


@pytest.mark.skipif(not (SHARED / "parity/dev/preprocessing/conversations.json").is_file(), reason="reference data not here")
def test_reference_conversations():
    folder = SHARED / "parity/dev/preprocessing"
    found = read_records(folder / "conversations.json")
    assert [record.meta.task for record in found] == ["vqa_open", "region", "grounding", "grounding", "vqa_open", "region"]
    assert found[2].targets[0].name == "polyp"
    assert found[3].targets[0].turn == 3
