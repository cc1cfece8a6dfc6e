"""Import of own data: what is written, what is asked, what is refused."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medplib.data.prepare.importer import import_manifest
from medplib.data.prepare.labels import clean_label
from medplib.data.prepare.options import ImportOptions
from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.imaging.mask import read_mask

SHARED = Path(os.environ.get("MEDPLIB_SHARED", Path(__file__).resolve().parents[5] / "shared"))
HALF = ImportOptions(val_fraction=0.25)


def everything(out, name):
    return [record for file in sorted(out.glob(f"*/{name}.json")) for record in read_records(file)]


def test_layout_and_summary(filled, tmp_path):
    out = tmp_path / "data"
    summary = import_manifest(filled.file, out, options=HALF)
    assert summary.images == {"train": 18, "val": 6}
    assert summary.names == {"cell nucleus": 8, "liver": 8, "polyp": 8, "spleen": 4}
    assert summary.masks == 8 + 4 + 8 + 24
    assert len(list((out / "masks_merged").iterdir())) == 8
    assert {path.name for path in (out / "train").iterdir()} == {
        "MeCoVQA-Grounding.json",
        "MeCoVQA-Region.json",
        "MeCoVQA-Closed.json",
        "MeCoVQA-Complex.json",
        "alignment.json",
    }
    index = json.loads((out / "SAMed2D_v1.json").read_text())
    assert set(index) == {f"images/{path.name}" for path in (out / "images").iterdir()}
    assert {file for files in index.values() for file in files} == {f"masks/{path.name}" for path in (out / "masks").iterdir()}
    assert json.loads((out / "SAMed2D_v1_class_mapping_id.json").read_text())["ct"] == {"liver": 0, "spleen": 1}
    assert "24 images" in summary.lines()[0]
    assert str(filled.folder) not in (out / "import.json").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".part")] == []


def test_pixels_and_masks_are_those_of_the_manifest(filled, tmp_path):
    import_manifest(filled.file, tmp_path / "data", options=HALF)
    source = np.asarray(Image.open(filled.folder / "ct/3.png"))
    written = Image.open(tmp_path / "data/images/ct_00--ct--3--2d_none.png")
    assert written.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(written), source)
    union = read_mask(tmp_path / "data/masks_merged/microscopy_00--cells--3--2d_none--0000_merged.png", size=(40, 60))
    parts = [read_mask(filled.folder / f"cells/m/3_{k}.png", size=(40, 60)) for k in range(3)]
    np.testing.assert_array_equal(union, parts[0] | parts[1] | parts[2])


def test_the_same_seed_gives_the_same_bytes(filled, tmp_path):
    for name, options in (("a", HALF), ("b", ImportOptions(val_fraction=0.25, workers=1)), ("c", ImportOptions(val_fraction=0.25, seed=1))):
        import_manifest(filled.file, tmp_path / name, options=options)
    texts = {name: (tmp_path / name / "train/MeCoVQA-Grounding.json").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_questions_are_true_and_balanced(imported):
    out = imported
    grounding = everything(out, "MeCoVQA-Grounding")
    kinds = {"ct": {"liver", "spleen"}, "scope": {"polyp"}, "cells": {"cell nucleus"}}
    for record in grounding:
        for target in record.targets:
            if target.mask is None:  # never a name that the same source might only have left unlabelled
                assert target.name not in kinds[record.meta.source]
            else:
                assert target.name in record.meta.present
    assert any(t.mask is None for r in grounding for t in r.targets)
    assert any(len(r.targets) == 2 and r.turns[1].text == "liver <SEG>, spleen <SEG>." for r in grounding)
    single = [r for r in grounding if len(r.targets) == 1]
    assert {r.turns[1].text for r in single if r.targets[0].mask} == {"<SEG>"}
    assert all(r.turns[1].text == f"There is no {r.targets[0].name} in this image." for r in single if r.targets[0].mask is None)
    closed = read_records(out / "train/MeCoVQA-Closed.json")
    answers = defaultdict(Counter)
    for record in closed:
        kind = next((k for k in ("small", "side", "half", "there", "show", "see") if k in record.turns[0].text), "modality")
        kind = {"side": "side", "half": "side", "there": "is", "show": "is", "see": "is"}.get(kind, kind)
        name = next((n for n in ("liver", "spleen", "polyp", "cell nucleus") if n in record.turns[0].text), "")
        answers[kind, name][record.turns[1].text] += 1
    assert {kind for kind, _ in answers} == {"small", "side", "is", "modality"}
    for (kind, _), counts in answers.items():
        if kind != "modality":
            assert len(counts) == 2
            assert len(set(counts.values())) == 1


def test_side_is_that_of_the_image_half(imported):
    asked = [r for r in everything(imported, "MeCoVQA-Closed") if r.turns[1].text in ("left", "right")]
    assert asked
    for record in asked:
        number = int(record.images[0].name.split("--")[2])
        assert record.turns[1].text == ("left" if number % 2 else "right")


def test_size_is_judged_among_the_images_of_a_name(imported):
    numbers = defaultdict(set)  # the larger the number, the larger the polyp
    for record in everything(imported, "MeCoVQA-Closed"):
        if record.turns[1].text in ("small", "large") and "polyp" in record.turns[0].text:
            numbers[record.turns[1].text].add(int(record.images[0].name.split("--")[2]))
    assert max(numbers["small"]) < min(numbers["large"])


def test_region_answers_name_the_mask(imported):
    classes = json.loads((imported / "SAMed2D_v1_class_mapping_id.json").read_text())
    for record in everything(imported, "MeCoVQA-Region"):
        number = int(record.regions[0].stem.split("--")[-1][:4])
        assert classes[record.meta.source][record.turns[1].text] == number


def test_max_side_shrinks_images_and_masks_together(filled, tmp_path):
    summary = import_manifest(filled.file, tmp_path / "data", options=ImportOptions(max_side=30))
    assert summary.shrunk_images == 24
    image = Image.open(tmp_path / "data/images/ct_00--ct--0--2d_none.png")
    assert image.size == (30, 20)
    mask = read_mask(tmp_path / "data/masks/ct_00--ct--0--2d_none--0000_000.png", size=(20, 30))
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max()) == (20, 22)  # pixels 40..45 of 60
    assert rows.min() == 2 or rows.min() == 3


def test_rules_offsets_and_stated_absence(manifest, tmp_path):
    image = manifest.image("a.png")
    base = {"source": "s", "modality": "CT", "image": image}
    manifest.add(**base, mask=manifest.mask("dark.png", (0, 4, 0, 6), low=200, high=10), label="a", mask_rule="lt128")
    manifest.add(**base, mask=manifest.mask("grey.png", (0, 4, 0, 6), low=90, high=200), label="b", mask_rule="gt127")
    manifest.add(**base, mask=manifest.mask("patch.png", (0, 5, 0, 7), size=(5, 7)), label="c", offset_left_top="50,30")
    manifest.add(**base, mask="absent", label="d")
    import_manifest(manifest.file, tmp_path / "data", options=ImportOptions(val_fraction=0, absent_ratio=1))
    areas = [int(read_mask(tmp_path / f"data/masks/ct_00--s--a--2d_none--000{i}_000.png", size=(40, 60)).sum()) for i in range(3)]
    assert areas == [24, 24, 35]
    patch = read_mask(tmp_path / "data/masks/ct_00--s--a--2d_none--0002_000.png", size=(40, 60))
    assert patch[30:35, 50:57].all()


def test_stated_absence_and_exhaustive_sources_give_hard_negatives(manifest, tmp_path):
    for i in range(4):
        image = manifest.image(f"{i}.png", seed=i)
        mask = manifest.mask(f"m{i}.png")
        manifest.add(source="s", modality="CT", image=image, mask=mask, label="liver" if i % 2 else "spleen")
        manifest.add(source="s", modality="CT", image=image, mask="absent" if i < 2 else manifest.mask(f"t{i}.png"), label="tumour")
    cases = (((), {("tumour", "0"), ("tumour", "1")}), (("s",), {("tumour", "0"), ("tumour", "1"), ("liver", "0"), ("spleen", "1")}))
    for number, (exhaustive, expected) in enumerate(cases):
        options = ImportOptions(val_fraction=0, absent_ratio=1, exhaustive=exhaustive)
        out = tmp_path / f"data{number}"
        import_manifest(manifest.file, out, options=options)
        records = read_records(out / "train/MeCoVQA-Grounding.json")
        absent = {(t.name, r.images[0].name.split("--")[2]) for r in records for t in r.targets if t.mask is None}
        assert expected <= absent
        assert all(name not in record.meta.present for record in records for name in [t.name for t in record.targets if t.mask is None])
        if not exhaustive:
            assert absent == expected


@pytest.mark.parametrize(("on_empty", "names", "dropped"), [("skip", {"liver": 1}, 1), ("absent", {"liver": 1}, 1)])
def test_empty_masks(manifest, tmp_path, caplog, on_empty, names, dropped):
    base = {"source": "s", "modality": "CT", "image": manifest.image("a.png")}
    manifest.add(**base, mask=manifest.mask("empty.png", high=0), label="spleen")
    manifest.add(**base, mask=manifest.mask("full.png"), label="liver")
    summary = import_manifest(manifest.file, tmp_path / "data", options=ImportOptions(on_empty=on_empty, val_fraction=0))
    assert (summary.names, summary.empty_masks) == (names, dropped)
    assert "1 empty masks left out" in caplog.text


def one(manifest, **columns):
    base = {"source": "s", "modality": "CT", "image": manifest.image("a.png"), "mask": manifest.mask("m.png"), "label": "liver"}
    manifest.add(**base | columns)


def truncated(manifest, name):
    data = (manifest.folder / name).read_bytes()
    (manifest.folder / name).write_bytes(data[: len(data) // 2])


BAD = {
    "missing image": (lambda m: one(m, image="none.png"), "none.png"),
    "missing mask": (lambda m: one(m, mask="none.png"), "none.png"),
    "truncated image": (lambda m: (one(m), truncated(m, "a.png")), "a.png"),
    "truncated mask": (lambda m: (one(m), truncated(m, "m.png")), "m.png"),
    "empty mask": (lambda m: one(m, mask=m.mask("e.png", high=0)), "an empty one"),
    "misaligned": (lambda m: one(m, mask=m.mask("o.png", size=(40, 61))), "40 x 61"),
    "patch outside": (lambda m: one(m, mask=m.mask("o.png", size=(30, 30)), offset_left_top="31,0"), "at left 31"),
    "bad offset": (lambda m: one(m, offset_left_top="-1,0"), "'-1,0'"),
    "unknown rule": (lambda m: one(m, mask_rule="gt5"), "'gt5'"),
    "leaves root": (lambda m: one(m, image="../a.png"), "inside the data root"),
    "absolute": (lambda m: one(m, mask=str(m.folder / "m.png")), "inside the data root"),
    "no label": (lambda m: one(m, label="(instance)"), "'(instance)'"),
    "empty cell": (lambda m: one(m, source=""), "an empty cell"),
    "tag in label": (lambda m: one(m, label="a <SEG>"), "without < and >"),
    "other size": (lambda m: one(m, width="61", height="40"), "60 x 40"),
    "bad width": (lambda m: one(m, width="wide", height="40"), "'wide'"),
    "unknown split": (lambda m: one(m, split="dev"), "'dev'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_and_nothing_is_left(manifest, tmp_path, case):
    make, message = BAD[case]
    make(manifest)
    with pytest.raises(InputError) as caught:
        import_manifest(manifest.file, tmp_path / "data")
    text = str(caught.value)
    assert "manifest.csv line 2" in text
    assert message in text
    assert "\n" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


BAD_PAIRS = {
    "duplicate": ({}, {}, "the same as"),
    "two modalities": ({}, {"modality": "MR", "mask": "n.png"}, "one modality"),
    "two splits": ({"split": "train"}, {"split": "val", "mask": "n.png"}, "one split"),
    "two labels, one name": ({"label": "core (a)"}, {"label": "core (b)", "mask": "n.png"}, "label map"),
    "absent and there": ({"mask": "absent"}, {}, "either absent or with masks"),
    "patient in two splits": ({"patient": "p", "split": "train"}, {"patient": "p", "split": "val", "image": "b.png"}, "patient 'p'"),
    "same file name": ({}, {"image": "x/a.png"}, None),
    "names that differ in nothing": ({"image": "x y/a.png"}, {"image": "x_y/a.png"}, "rename one"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_rows_that_contradict_each_other(manifest, tmp_path, case):
    first, second, message = BAD_PAIRS[case]
    manifest.mask("n.png")
    for name in ("b.png", "x/a.png", "x y/a.png", "x_y/a.png"):
        manifest.image(name)
    one(manifest, **first)
    one(manifest, **second)
    if message is None:
        assert import_manifest(manifest.file, tmp_path / "data").images["train"] == 1
        return
    with pytest.raises(InputError, match=message):
        import_manifest(manifest.file, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportOptions(val_fraction=1.0), "leave a rest"),
        (ImportOptions(max_side=0), "max_side"),
        (ImportOptions(workers=0), "workers"),
        (ImportOptions(exhaustive=("other",)), "other"),
        (ImportOptions(anatomy={"other": "brain"}), "other"),
        (ImportOptions(patient_regex={"ct": "("}), "regular expression"),
        (ImportOptions(patient_regex={"ct": r"\d+"}), "one group"),
        (ImportOptions(patient_regex={"ct": r"x(\d+)"}), "matches"),
    ],
)
def test_bad_options(filled, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        import_manifest(filled.file, tmp_path / "data", options=options)


@pytest.mark.parametrize(("text", "message"), [("", "columns"), ("a,b\n1,2\n", "columns"), ("source,modality,image,mask,label\n", "row")])
def test_files_that_are_no_manifest(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        import_manifest(tmp_path / "m.csv", tmp_path / "data")
    with pytest.raises(InputError, match=r"none\.csv"):
        import_manifest(tmp_path / "none.csv", tmp_path / "data")


def test_a_folder_with_content_is_not_touched(filled, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/keep.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty"):
        import_manifest(filled.file, tmp_path / "data")
    assert (tmp_path / "data/keep.txt").read_text() == "mine"


def test_label_map(manifest, tmp_path):
    one(manifest, label="liver_parenchyma")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"liver parenchyma": "liver"}))
    options = ImportOptions(labels=labels, strict_labels=True)
    assert import_manifest(manifest.file, tmp_path / "a", options=options).names == {"liver": 1}
    labels.write_text(json.dumps({"spleen": "spleen"}))
    with pytest.raises(InputError, match=r"line 2.*liver_parenchyma"):
        import_manifest(manifest.file, tmp_path / "b", options=options)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cell nucleus (instance)", "cell nucleus"),
        ("lung_upper_lobe_left", "lung upper lobe left"),
        ("vertebrae T9", "vertebrae T9"),
        ("[x]", ""),
    ],
)
def test_clean_label(label, name):
    assert clean_label(label) == name


def test_names_alike_are_not_called_absent_in_related_images(manifest, tmp_path):
    """Lungs labelled in X-ray may be seen in CT; a retinal vessel cannot."""
    for i in range(6):
        x, c, f = (manifest.image(f"{k}{i}.png", seed=10 * n + i) for n, k in enumerate("xcf"))
        mask = manifest.mask(f"m{i}.png")
        manifest.add(source="x", modality="X-ray", image=x, mask=mask, label="lungs")
        manifest.add(source="c", modality="CT", image=c, mask=mask, label="liver")
        manifest.add(source="f", modality="fundus", image=f, mask=mask, label="retinal vessels")
    import_manifest(manifest.file, tmp_path / "a", options=ImportOptions(val_fraction=0, absent_ratio=2))
    pairs = {(r.meta.source, t.name) for r in everything(tmp_path / "a", "MeCoVQA-Grounding") for t in r.targets if t.mask is None}
    assert pairs == {("x", "retinal vessels"), ("c", "retinal vessels"), ("f", "lungs"), ("f", "liver")}
    import_manifest(
        manifest.file, tmp_path / "b", options=ImportOptions(val_fraction=0, absent_ratio=2, anatomy={"x": "chest", "c": "pelvis"})
    )
    pairs = {(r.meta.source, t.name) for r in everything(tmp_path / "b", "MeCoVQA-Grounding") for t in r.targets if t.mask is None}
    assert {("x", "liver"), ("c", "lungs")} <= pairs


@pytest.mark.skipif(not (SHARED / "data/manifest_2d.csv").is_file(), reason="real data not here")
def test_real_data(tmp_path):
    lines = (SHARED / "data/manifest_2d.csv").read_text().splitlines()
    chosen = [line for line in lines[1:] if line.split(",")[0] in ("sam_med2d_demo", "lgg_mri")]
    (tmp_path / "m.csv").write_text("\n".join([lines[0], *chosen]) + "\n")
    options = ImportOptions(
        root=SHARED / "data",
        splits=SHARED / "data/splits_2d.json",
        patient_regex={"lgg_mri": r"(TCGA_[A-Z]+_[A-Z0-9]+)_"},
        max_side=128,
    )
    summary = import_manifest(tmp_path / "m.csv", tmp_path / "data", options=options)
    assert summary.images == {"train": 51, "val": 13}
    assert summary.names["low-grade glioma"] == 60
