"""Division by patient."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medplib.data.prepare.importer import import_manifest
from medplib.data.prepare.options import ImportOptions
from medplib.data.prepare.splits import draw
from medplib.data.sources import read_records
from medplib.errors import InputError


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    val=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 3),
)
def test_shares_are_exact_per_source_and_order_does_not_matter(counts, val, test, seed):
    members = [(f"s{s}", f"s{s}--p{p}") for s, count in enumerate(counts) for p in range(count)]
    drawn = draw(members, {"val": val, "test": test}, seed)
    assert drawn == draw(members[::-1] * 2, {"val": val, "test": test}, seed)
    for s, count in enumerate(counts):
        splits = [drawn[patient] for source, patient in members if source == f"s{s}"]
        assert "train" in splits
        assert ("val" in splits) == (val > 0 and count > 1)
        if count > 3:
            assert splits.count("val") == (max(1, round(val * count)) if val else 0)
            assert splits.count("test") == (max(1, round(test * count)) if test else 0)


def test_a_seed_changes_the_draw():
    members = [("s", f"p{i}") for i in range(50)]
    assert draw(members, {"val": 0.5}, 0) != draw(members, {"val": 0.5}, 1)


def add_eyes(manifest, **columns):
    for i in range(6):
        for side in "LR":
            image, mask = manifest.image(f"Image_{i:02d}{side}.png", seed=i), manifest.mask(f"m{i}{side}.png")
            manifest.add(source="eyes", modality="fundus", image=image, mask=mask, label="vessels", **columns)


@pytest.mark.parametrize("seed", range(4))
def test_patients_by_pattern_stay_together(manifest, tmp_path, seed):
    add_eyes(manifest)
    options = ImportOptions(patient_regex={"eyes": r"Image_(\d+)"}, val_fraction=0.4, seed=seed)
    import_manifest(manifest.file, tmp_path / "data", options=options)
    patients = {split: {r.meta.patient for r in read_records(tmp_path / f"data/{split}/alignment.json")} for split in ("train", "val")}
    assert len(patients["train"]) == 4
    assert not patients["train"] & patients["val"]


def write_splits_file(tmp_path, train, val, split="val"):
    file = tmp_path / "splits.json"
    names = [f"Image_{i:02d}{side}.png" for i in range(6) for side in "LR"]
    file.write_text(json.dumps({"eyes": {"train": names[train], split: names[val]}}))
    return file


def test_splits_file(manifest, tmp_path):
    add_eyes(manifest)
    file = write_splits_file(tmp_path, slice(0, 8), slice(8, 12))
    summary = import_manifest(manifest.file, tmp_path / "data", options=ImportOptions(splits=file))
    assert summary.images == {"train": 8, "val": 4}


@pytest.mark.parametrize(
    ("train", "val", "split", "message"),
    [
        (slice(0, 7), slice(7, 12), "val", "patient '03'"),
        (slice(0, 8), slice(8, 11), "val", "a split for 'Image_05R.png'"),
        (slice(0, 8), slice(7, 12), "val", "every image in one split"),
        (slice(0, 8), slice(8, 12), "dev", "split 'dev'"),
    ],
)
def test_bad_splits_files(manifest, tmp_path, train, val, split, message):
    add_eyes(manifest)
    file = write_splits_file(tmp_path, train, val, split)
    with pytest.raises(InputError, match=message):
        import_manifest(manifest.file, tmp_path / "data", options=ImportOptions(splits=file, patient_regex={"eyes": r"Image_(\d+)"}))


def test_a_splits_file_that_is_none(manifest, tmp_path):
    add_eyes(manifest)
    for text in ("[", "[]", '{"eyes": []}', '{"eyes": {"train": 3}}'):
        (tmp_path / "splits.json").write_text(text)
        with pytest.raises(InputError, match=r"splits\.json"):
            import_manifest(manifest.file, tmp_path / "data", options=ImportOptions(splits=tmp_path / "splits.json"))
