from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import Rule
from medplib.evaluation.grounding import summarise_grounding
from medplib.evaluation.overlay import PREDICTION_RGB, TARGET_RGB, draw_overlay
from medplib.evaluation.protocols import STRICT, UPSTREAM
from medplib.evaluation.report import Gallery, Picture, Report, Table, figure_table, render, write_report
from medplib.evaluation.segmentation import GroundingCase, score_case
from medplib.evaluation.tables import grounding_tables, vqa_tables
from medplib.evaluation.text import TextCase, summarise_vqa, text_score

FAST = Bootstrap(resamples=100)
FIGURE = Rule("Dice", "strict", "above 0.5").mean([0.2, 0.9, 0.7], "abc", FAST)
VOID = {"meta", "img", "line", "circle"}


class Page(HTMLParser):
    """Checks that elements nest and collects what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.alt: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.alt += [value for name, value in attrs if name == "alt"]
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def test_page_is_whole_and_loads_nothing():
    report = Report(
        "Test <run>",
        tables=(Table("T & U", ("", "a", "b"), (("row", FIGURE, None), ("two", 3, 0.12346))),),
        galleries=(Gallery("Cases", (Picture(picture(), 'liver "left" <b>'),)),),
        notes=("first & second",),
        appendix="moe\n  base <- vl",
    )
    page = Page(render(report))
    assert "script" not in page.seen
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert "Test <run>" in page.text
    assert 'liver "left" <b>' in page.text
    assert page.alt == ['liver "left" <b>']
    assert "0.1235" in page.text
    assert "moe\n  base <- vl" in page.text


def test_figures_show_value_interval_n_and_their_rule():
    text = Page(render(Report("r", (figure_table("t", [("mean Dice", FIGURE), ("nothing", None)]),)))).text
    assert "0.600" in text
    assert f"{FIGURE.ci95[0]:.3f} to {FIGURE.ci95[1]:.3f}" in text
    assert "n = 3" in text
    assert "Protocol strict: above 0.5." in text
    assert "B=100, seed=0" in text
    assert "–" in text


def test_embedded_image_is_the_picture_without_metadata(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "Doe^Jane")
    Image.fromarray(picture()).save(tmp_path / "scan.png", pnginfo=info, icc_profile=b"made for Doe")
    with_profile = Image.open(tmp_path / "scan.png")
    assert b"Doe" in with_profile.info["icc_profile"]
    for source in (picture(), tmp_path / "scan.png"):
        html = render(Report("r", galleries=(Gallery("g", (Picture(source, "c"),)),)))
        data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
        assert b"Doe" not in data
        assert not Image.open(io.BytesIO(data)).info
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture())


def test_large_images_are_reduced():
    html = render(Report("r", galleries=(Gallery("g", (Picture(np.zeros((2000, 1000), np.uint8), "c"),)),)))
    assert Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]))).size == (320, 640)


@pytest.mark.parametrize(
    "report",
    [
        Report("r", (Table("t", ("", "a"), (("one", 1, 2),)),)),
        Report("r", galleries=(Gallery("g", (Picture(np.zeros((3, 3)), "case-9"),)),)),
        Report("r", galleries=(Gallery("g", (Picture(np.zeros((3, 3, 4), np.uint8), "case-9"),)),)),
    ],
)
def test_bad_content_is_refused_and_nothing_is_written(tmp_path, report):
    with pytest.raises(InputError, match=r"case-9|'t'"):
        write_report(tmp_path / "report.html", report)
    assert not list(tmp_path.iterdir())


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            render(Report("r", galleries=(Gallery("g", (Picture(tmp_path / name, "c"),)),)))


def test_summaries_become_tables(tmp_path):
    target = np.zeros((8, 8), bool)
    target[2:5, 2:5] = True
    cases = [
        GroundingCase(
            f"c{i}", f"r{i}", "s", f"p{i}", "CT", "liver", 0, None if i == 3 else target, np.where(target, 0.3 + i / 10, 0.01), presence=0.5
        )
        for i in range(4)
    ]
    summaries = [summarise_grounding([score_case(c, p) for c in cases], p, FAST) for p in (UPSTREAM, STRICT)]
    answers = summarise_vqa([text_score(TextCase(str(i), "r", "s", str(i), "CT", "closed", "yes", "yes")) for i in range(3)], FAST)
    tables = (*grounding_tables(summaries), *vqa_tables(answers))
    write_report(tmp_path / "report.html", Report("demo", tables))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for words in ("protocol upstream", "protocol strict", "Dice by modality", "false-positive rate", "missing seg", "Closed questions"):
        assert words in page.text
    assert "Open questions" not in page.text
    # liver under both protocols: upstream sees every mask, strict only those above one half.
    assert tables[0].rows[0][1].value == 1.0
    assert tables[0].rows[0][2].value == 0.0


def test_overlay_outlines_both_masks():
    image = np.full((60, 80), 50, np.uint8)
    target, prediction = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    target[10:30, 10:30] = True
    prediction[20:40, 50:70] = True
    drawn = draw_overlay(image, target_HW=target, prediction_HW=prediction)
    assert drawn.shape == (60, 80, 3)
    assert tuple(drawn[10, 15]) == TARGET_RGB
    assert tuple(drawn[20, 60]) == PREDICTION_RGB
    assert tuple(drawn[20, 20]) == (50, 50, 50)  # the inside stays visible
    assert (image == 50).all()
    np.testing.assert_array_equal(draw_overlay(drawn, target_HW=None, prediction_HW=None), drawn)
    colour = np.full((60, 80, 3), 50, np.uint8)
    np.testing.assert_array_equal(draw_overlay(colour, target_HW=target, prediction_HW=prediction), drawn)
    assert (colour == 50).all()
    for bad in (image.astype(np.float32), np.zeros((3, 3, 4), np.uint8)):
        with pytest.raises(InputError):
            draw_overlay(bad, target_HW=None, prediction_HW=None)
    with pytest.raises(InputError, match="size"):
        draw_overlay(image, target_HW=target[1:], prediction_HW=None)
