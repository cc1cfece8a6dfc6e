"""Audit: a clean folder is clean, every kind of fault is found and named, filtered copies read."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medplib.data.prepare.audit import AREA_EDGES, audit, write_filtered
from medplib.data.sources import read_mecovqa
from medplib.errors import InputError

FILE = "train/MeCoVQA-Grounding.json"


@pytest.fixture
def data(imported, tmp_path):
    shutil.copytree(imported, tmp_path / "data")
    return tmp_path / "data"


def items(data, file=FILE):
    return json.loads((data / file).read_text())


def save(data, content, file=FILE):
    (data / file).write_text(json.dumps(content))


def located(data, file=FILE):
    """Index and entry of the first record with a mask."""
    return next((i, item) for i, item in enumerate(items(data, file)) if item["meta"]["targets"][0]["mask"])


def mask_of(data):
    return data / located(data)[1]["meta"]["targets"][0]["mask"]


def test_a_fresh_import_has_no_issue(data):
    report = audit(data)
    assert report.issues == ()
    assert report.images == 24
    assert report.splits.keys() == {"train", "val"}
    assert report.records == sum(report.splits.values()) == sum(report.tasks.values())
    assert sum(sum(bins) for bins in report.areas.values()) == 8 + 4 + 8 + 8
    assert report.areas["polyp"][AREA_EDGES.index(0.1) - 1] == 8  # 90..153 of 2400 pixels
    assert report.lines()[-1].strip() == "no issues"


def missing(data):
    mask_of(data).unlink()


def invalid(data):
    content = items(data)
    content[located(data)[0]]["conversations"][1]["value"] += " <SEG>"
    save(data, content)


def unreadable(data):
    path = mask_of(data)
    path.write_bytes(path.read_bytes()[:40])


def empty_mask(data):
    Image.new("L", (60, 40)).save(mask_of(data))


def size_mismatch(data):
    Image.new("L", (40, 60), 255).save(mask_of(data))


def duplicate(data):
    content = items(data)
    save(data, [*content, content[located(data)[0]]])


def image_leak(data):
    """The same pixels in another file and encoding."""
    train, val = (data / items(data, f"{split}/alignment.json")[0]["image"] for split in ("train", "val"))
    pixels = np.asarray(Image.open(train))
    Image.fromarray(pixels).save(val, compress_level=1)
    assert train.read_bytes() != val.read_bytes()


def patient_leak(data):
    content = items(data, "val/alignment.json")
    content[0]["meta"]["patient"] = items(data, "train/alignment.json")[0]["meta"]["patient"]
    content[0]["meta"]["source"] = items(data, "train/alignment.json")[0]["meta"]["source"]
    save(data, content, "val/alignment.json")


FAULTS = [missing, invalid, unreadable, empty_mask, size_mismatch, duplicate, image_leak, patient_leak]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_each_fault_is_found_named_and_filtered(data, tmp_path, fault):
    fault(data)
    report = audit(data)
    assert {issue.kind for issue in report.issues} == {fault.__name__}
    assert all(f"{issue.file}[{issue.index}]" in issue.text and "\n" not in issue.text for issue in report.issues)
    assert any(fault.__name__ in line for line in report.lines())
    counts = write_filtered(report, tmp_path / "clean", (fault.__name__,))
    affected = {(issue.file, issue.index) for issue in report.issues}
    assert sum(counts.values()) == len(affected) > 0
    reasons = json.loads((tmp_path / "clean/dropped.json").read_text())
    assert {reason["reasons"][0]["kind"] for reason in reasons} == {fault.__name__}
    for file in report.files:
        kept = read_mecovqa(tmp_path / "clean" / file.relative_to(report.root), data)
        assert len(kept) == len(json.loads(file.read_text())) - sum(f == file for f, _ in affected)


def test_issues_of_other_kinds_stay(data, tmp_path):
    empty_mask(data)
    report = audit(data)
    assert sum(write_filtered(report, tmp_path / "clean", ("duplicate",)).values()) == 0


def test_without_decoding_only_names_are_compared(data):
    empty_mask(data)
    image_leak(data)
    assert audit(data, decode=False).issues == ()
    content = items(data, "val/alignment.json")
    content[0]["image"] = items(data, "train/alignment.json")[0]["image"]
    save(data, content, "val/alignment.json")
    assert [issue.kind for issue in audit(data, decode=False).issues] == ["image_leak"]


def test_a_folder_without_conversations(tmp_path):
    with pytest.raises(InputError, match="conversations"):
        audit(tmp_path)
