"""`python -m medplib.prepare`: every action once through its command line."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from medplib import prepare
from medplib.errors import InputError


def _run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["medplib.prepare", *map(str, words)])
    prepare.main()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepare") / "phantom"
    with pytest.MonkeyPatch.context() as patch:
        _run(patch, "phantom", "--out", out, "--train=16", "--val=8", "--test=8", "--zero_shot=8", "--volumes=1", "--workers=1")
    return out


def test_phantom_and_what_reads_it(phantom, tmp_path, monkeypatch, capsys):
    train, val = phantom / "train" / "MeCoVQA-Closed.json", phantom / "val" / "MeCoVQA-Closed.json"
    _run(monkeypatch, "tokenizer", "--data", json.dumps([str(train)]), "--out", tmp_path / "tokenizer", "--vocab_size=400")
    _run(monkeypatch, "question_floor", "--train", json.dumps([str(train)]), "--val", json.dumps([str(val)]))
    _run(monkeypatch, "audit", "--root", phantom, "--workers=1")
    _run(monkeypatch, "merge_masks", "--files", json.dumps([str(phantom / "train" / "MeCoVQA-Grounding.json")]), "--root", phantom)
    printed = capsys.readouterr().out
    for part in ("entries from", "majority", "records"):
        assert part in printed


def test_audit_writes_files_without_bad_records(tmp_path, monkeypatch, capsys):
    """A record whose image is missing: told, exit 1, and absent from the copies, while a good one stays."""
    root = tmp_path / "root"
    for folder in ("images", "masks", "train"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(root / "images" / "ct_00--a--b--2d_none.png")
    turns = [{"from": "human", "value": "<image>\nIs there a cyst?"}, {"from": "gpt", "value": "no"}]
    names = {"good": "images/ct_00--a--b--2d_none.png", "bad": "images/ct_00--a--c--2d_none.png"}
    records = [{"id": key, "image": image, "conversations": turns} for key, image in names.items()]
    (root / "train" / "closed.json").write_text(json.dumps(records))
    with pytest.raises(SystemExit) as stopped:
        _run(monkeypatch, "audit", "--root", root, "--workers=1", "--filtered", tmp_path / "clean", "--drop", '["missing"]')
    assert stopped.value.code == 1
    assert "1 records left out" in capsys.readouterr().out
    assert [r["id"] for r in json.loads((tmp_path / "clean" / "train" / "closed.json").read_text())] == ["good"]
    with pytest.raises(InputError, match=r"^drop: expected .*missing.*, found rotten"):
        _run(monkeypatch, "audit", "--root", root, "--workers=1", "--drop", '["rotten"]')


def test_import(tmp_path, monkeypatch, capsys):
    rows = []
    generator = np.random.default_rng(0)
    for index in range(12):
        image, mask = tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png"
        Image.fromarray(generator.integers(0, 255, (40, 48), dtype=np.uint8)).save(image)
        truth = np.zeros((40, 48), np.uint8)
        truth[10:20, 10 : 20 + index] = 255
        Image.fromarray(truth).save(mask)
        rows.append({"source": "made", "modality": "US", "image": image.name, "mask": mask.name, "label": "cyst", "mask_rule": "gt127"})
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _run(monkeypatch, "import", "--manifest", tmp_path / "manifest.csv", "--out", tmp_path / "out")
    assert "12 images" in capsys.readouterr().out


def test_vqa_rad(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    entries = []
    for index in range(6):
        Image.fromarray(np.full((20, 20), index * 20, np.uint8)).save(tmp_path / "images" / f"{index}.jpg")
        entries.append(
            {
                "qid": index,
                "image_name": f"{index}.jpg",
                "question": "is there a fracture?",
                "answer": "yes" if index % 2 else "no",
                "answer_type": "CLOSED",
                "question_type": "PRES",
                "phrase_type": "freeform",
                "image_organ": "CHEST",
                "image_case_url": f"case/{index}",
            }
        )
    (tmp_path / "rad.json").write_text(json.dumps(entries))
    _run(monkeypatch, "vqa_rad", "--json", tmp_path / "rad.json", "--images", tmp_path / "images", "--out", tmp_path / "out")
    written = [r for split in ("train", "val") for r in json.loads((tmp_path / "out" / split / "MeCoVQA-Closed.json").read_text())]
    assert sorted(r["conversations"][1]["value"] for r in written) == ["no"] * 3 + ["yes"] * 3
    assert len({r["image"] for r in written}) == 6
    assert capsys.readouterr().out
