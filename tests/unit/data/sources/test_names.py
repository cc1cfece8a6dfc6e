"""Names out of questions and file names."""

from pathlib import Path

import pytest

from medplib.data.phantom.templates import QUESTIONS
from medplib.data.sources.questions import listed_in_question, names_in_question
from medplib.data.sources.sa_med2d import ClassNames, Stem, image_stem, mask_class_id, mask_name, parse_stem
from medplib.errors import InputError


@pytest.mark.parametrize(
    ("question", "count", "names"),
    [
        ("Could you segment out the liver in this image?", 1, ("liver",)),
        ("Please generate a mask that segments the inferior vena cava in this image.", 1, ("inferior vena cava",)),
        ("<image>\nCan you segment the head of pancreas in this medical image?", 1, ("head of pancreas",)),
        ("Segment the liver and the spleen.", 2, ("liver", "spleen")),
        ("Segment the liver, the left kidney, and the spleen in this CT image.", 3, ("liver", "left kidney", "spleen")),
        ("Please segment left and right lung.", 1, ("left and right lung",)),
        ("What is the polyp in this image? Please output segmentation mask.", 1, ("polyp",)),
        ("Please generate a mask of the optic disc in this fundus image.", 1, ("optic disc",)),
        ("Where is the tumor? Answer with a mask.", 1, ("tumor",)),
        ("Outline the polyp in this image.", 1, ("polyp",)),
        ("Could you show where the liver is?", 1, ("liver",)),
        ("Show me where the left lung lies in this radiograph.", 1, ("left lung",)),
        ("Can you show where the liver and the spleen are in this image?", 2, ("liver", "spleen")),
        ("Can you segment it?", 1, None),
        ("Segment the liver.", 2, None),
        ("Hello", 1, None),
    ],
)
def test_names_in_question(question, count, names):
    assert names_in_question(question, count) == names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ct_00--AbdomenCT1K--Case_00011--x_0041.png", Stem("ct", "AbdomenCT1K", "AbdomenCT1K--Case_00011")),
        ("x_ray--Chest--c1--2d_none.png", Stem("x", "Chest", "Chest--c1")),
        ("us_a.png", Stem("us", "", "us_a")),
        ("1234.jpg", Stem("", "", "1234")),
        ("PMC5_fig.jpg", Stem("", "", "PMC5_fig")),
    ],
)
def test_parse_stem(name, stem):
    assert parse_stem(Path("images") / name) == stem


@pytest.mark.parametrize(
    ("modality", "stem"),
    [("CT", "ct_00--s_1--a_b--2d_none"), ("X-ray", "x_ray--s_1--a_b--2d_none"), ("microscopy-EM", "microscopy_em--s_1--a_b--2d_none")],
)
def test_image_stem(modality, stem):
    assert image_stem(modality, "s 1", "a/b") == stem


def test_mask_names_read_back():
    assert mask_name("ct_00--a--b--x_0001", 5, 12) == "ct_00--a--b--x_0001--0005_012.png"
    assert mask_class_id(Path(mask_name("ct_00--a--b--x_0001", 5, None))) == 5
    assert mask_class_id(Path(mask_name("ct_00--a--b--x_0001", 5, 1200))) == 5
    assert mask_class_id(Path("m1.png")) is None


def test_a_broken_class_table_is_named(tmp_path):
    (tmp_path / "SAMed2D_v1_class_mapping_id.json").write_text('{"a": 3}')
    with pytest.raises(InputError, match="SAMed2D_v1_class_mapping_id"):
        ClassNames(tmp_path)


@pytest.mark.parametrize(("kind", "names"), [("ground_one", ("left kidney",)), ("ground_two", ("left kidney", "cyst"))])
def test_every_wording_of_the_built_in_data_tells_its_names(kind: str, names: tuple[str, ...]) -> None:
    for wording in QUESTIONS[kind]:
        question = wording.format(a=names[0], b=names[-1])
        assert names_in_question(question, len(names)) == names, question


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("<image>\nSegment the cyst, the left hip and the stomach.", ("cyst", "left hip", "stomach")),
        ("Where are the aorta and the left kidney in this scan?", ("aorta", "left kidney")),
        ("Please mark the liver, the spleen, the aorta, and the uterus.", ("liver", "spleen", "aorta", "uterus")),
        ("Segment the liver in this image.", ()),
        ("Is there a liver, or a spleen?", ()),
        ("Segment it and the mask.", ()),
        ("", ()),
    ],
)
def test_listed_in_question(question: str, names: tuple[str, ...]) -> None:
    assert listed_in_question(question) == names
