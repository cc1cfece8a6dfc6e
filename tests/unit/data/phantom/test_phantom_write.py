from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medplib.data.phantom import PhantomConfig, catalog, write, write_phantom
from medplib.errors import InputError
from medplib.paths import inside

TINY = PhantomConfig(seed=5, train=16, val=2, test=2, zero_shot=2, volumes=1)


def _mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("three", 3)):
        write_phantom(TINY, tmp_path / name, workers=workers)
    one = _hashes(tmp_path / "one")
    assert len(one) > 60
    assert one == _hashes(tmp_path / "three")
    write_phantom(PhantomConfig(seed=6, train=2, val=0, test=0, zero_shot=0, volumes=0), tmp_path / "other", workers=1)
    images = [p for p in one if p.startswith("images")][:2]
    assert all(_hashes(tmp_path / "other").get(p) != one[p] for p in images)


def test_every_record_keeps_the_schema_and_every_path_exists(root, records):
    for file, objects in records.items():
        assert len({r["id"] for r in objects}) == len(objects), file
        for r in objects:
            assert set(r) - {"answer_type"} == {"id", "image", "conversations", "meta"}
            assert inside(root, r["image"], where=file).is_file()
            assert [c["from"] for c in r["conversations"]] == ["human", "gpt"]
            question, answer = (c["value"] for c in r["conversations"])
            assert question.startswith("<image>\n")
            masks = re.findall(r"<SEG><mask>(.*?)</mask>", answer)
            assert answer.count("<SEG>") == len(masks)
            assert masks == [t["mask"] for t in r["meta"]["targets"] if t["mask"] is not None]
            for path in masks + re.findall(r"<region>(.*?)</region>", question):
                assert inside(root, path, where=file).is_file()
            assert r.get("answer_type") == {"vqa_closed": "closed", "vqa_open": "open", "region": "open"}.get(r["meta"]["task"])


def test_masks_fit_their_image_and_are_binary_and_not_empty(root, config):
    index = json.loads((root / "SAMed2D_v1.json").read_text())
    assert len(index) == config.train + config.val + config.test + config.zero_shot
    assert sum(len(masks) for masks in index.values()) == len(list((root / "masks").iterdir()))
    for image, masks in index.items():
        size = Image.open(root / image).size
        for path in masks:
            values = _mask(root / path)
            assert values.shape[::-1] == size
            assert set(np.unique(values)) <= {0, 255}
            assert (values > 0).mean() >= 0.006


def test_merged_masks_are_the_union_of_the_instances(root):
    merged = list((root / "masks_merged").iterdir())
    assert merged
    for path in merged:
        stem = path.name.removesuffix("_merged.png")
        parts = [_mask(p) for p in sorted((root / "masks").glob(f"{stem}_*.png"))]
        assert len(parts) >= 2
        assert np.array_equal(np.maximum.reduce(parts), _mask(path))


def test_absent_targets_are_truly_absent_and_present_ones_are_listed(root, records):
    ids = json.loads((root / "SAMed2D_v1_class_mapping_id.json").read_text())["phantom"]
    on_disk = {path.name.rsplit("_", 1)[0] for path in (root / "masks").iterdir()}
    absent = 0
    for objects in records.values():
        for r in objects:
            for target in r["meta"]["targets"]:
                drawn = f"{Path(r['image']).stem}--{ids[target['name']]}" in on_disk
                assert drawn == (target["mask"] is not None) == (target["name"] in r["meta"]["present"])
                absent += not drawn
    assert absent > 100


def test_region_answers_name_what_is_marked(records):
    for file in ("train/MeCoVQA-Region.json", "test/MeCoVQA_Region_VQA_test.json"):
        for r in records[file]:
            number = int(re.search(r"--(\d{4})_\d{3}\.png", r["conversations"][0]["value"])[1])
            assert catalog.CLASS_IDS[r["conversations"][1]["value"].split(" in the ")[0]] == number


def test_no_patient_and_no_image_is_shared_between_splits(records):
    patients = {}
    for file, objects in records.items():
        split = file.split("/")[0].replace("zeroshot4grounding", "zero_shot")
        patients.setdefault(split, set()).update(r["meta"]["patient"] for r in objects)
    assert len(set.union(*patients.values())) == sum(len(p) for p in patients.values())


def test_zero_shot_files_hold_the_held_out_triplets_present_and_absent_apart(records):
    held = set(catalog.HELD_OUT)
    for name, present in (("grounding", True), ("absent", False)):
        objects = records[f"zero_shot/{name}.json"]
        assert objects
        for r in objects:
            (target,) = r["meta"]["targets"]
            assert (r["meta"]["modality"], target["name"], r["meta"]["task"]) in held
            assert (target["mask"] is not None) == present
    parts = [r["id"] for file, objects in records.items() if file.startswith("zeroshot4grounding") for r in objects]
    assert sorted(parts) == sorted(r["id"] for r in records["zero_shot/grounding.json"])


def test_the_vocabulary_is_small(records):
    words = set()
    for objects in records.values():
        for r in objects:
            for turn in r["conversations"]:
                words |= set(re.findall(r"[\w-]+|[^\w\s]", re.sub(r"<mask>.*?</mask>|<region>.*?</region>|<\w+>", " ", turn["value"])))
    assert 80 < len(words) < 400
    answers = {r["conversations"][1]["value"] for f in ("Closed", "Region") for r in records[f"train/MeCoVQA-{f}.json"]}
    modalities = {m.name for m in catalog.MODALITIES}
    assert all(answer == answer.lower() for answer in answers - modalities)


def test_volumes_share_an_oblique_affine_with_their_labels(root, config):
    listing = json.loads((root / "volumes" / "labels.json").read_text())
    assert len(listing["volumes"]) == config.volumes
    for entry in listing["volumes"]:
        image, labels = (nib.load(root / "volumes" / entry[key]) for key in ("image", "labels"))
        assert np.array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape
        assert "".join(nib.aff2axcodes(image.affine)) == entry["axes"]
        assert nib.affines.obliquity(image.affine).max() > np.radians(5)
        zooms = sorted(image.header.get_zooms())
        assert zooms[2] > 1.3 * zooms[0]
        numbers = set(np.unique(np.asarray(labels.dataobj))) - {0}
        assert {listing["classes"][name] for name in entry["present"]} == numbers
        assert len(numbers) >= 4


def test_structures_of_a_volume_lie_where_the_axes_say(root):
    listing = json.loads((root / "volumes" / "labels.json").read_text())
    pairs = 0
    for entry in listing["volumes"]:
        labels = nib.load(root / "volumes" / entry["labels"])
        values = np.asarray(labels.dataobj)
        for organ in ("kidney", "lung", "hip"):
            if {f"left {organ}", f"right {organ}"} <= set(entry["present"]):
                left, right = (
                    nib.affines.apply_affine(labels.affine, np.argwhere(values == listing["classes"][f"{side} {organ}"])).mean(0)
                    for side in ("left", "right")
                )
                assert left[0] < right[0]  # RAS+: x grows towards the patient's right
                pairs += 1
    assert pairs >= 1


def test_neighbouring_slices_change_smoothly(root):
    listing = json.loads((root / "volumes" / "labels.json").read_text())
    entry = listing["volumes"][0]
    image = nib.load(root / "volumes" / entry["labels"])
    values = np.moveaxis(np.asarray(image.dataobj), int(np.argmax(image.header.get_zooms())), 0)
    changed = [np.mean(a != b) for a, b in itertools.pairwise(values)]
    assert 0 < max(changed) < 0.12


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="a new or empty folder"):
        write_phantom(TINY, tmp_path / "data")
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(write, "write_volumes", fail)
    with pytest.raises(RuntimeError):
        write_phantom(PhantomConfig(train=1, val=0, test=0, zero_shot=0), tmp_path / "data", workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"train": -1}, {"volumes": -2}, {"present_share": 0.95}, {"seed": -1}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        PhantomConfig(**bad)


def test_the_summary_matches_the_files(root, records, config):
    about = json.loads((root / "phantom.json").read_text())
    assert about["config"]["seed"] == config.seed
    assert sum(about["images"]["train"].values()) == config.train
    assert about["questions"]["train"]["grounding"] == len(records["train/MeCoVQA-Grounding.json"])
    assert about["held_out"] == [list(t) for t in catalog.HELD_OUT]
