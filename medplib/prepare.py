"""`python -m medplib.prepare phantom|import|vqa_rad|tokenizer|audit|merge_masks ...`: data in, data folders and reports out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from medplib.data.prepare.options import ImportOptions
from medplib.errors import InputError, run_actions, run_command


def phantom(
    out: Path, seed: int = 0, train: int = 2000, val: int = 300, test: int = 250, zero_shot: int = 200, volumes: int = 4, workers: int = 2
) -> None:
    """Write the built-in procedural data set.

    Args:
        out: new folder.
        seed: same seed and sizes, same bytes.
        train: images of the training split.
        val: images of the validation split.
        test: images of the test split.
        zero_shot: images of the split whose (modality, structure, grounding) combinations training never sees.
        volumes: NIfTI volumes with oblique affines.
        workers: processes; the result does not depend on it.
    """
    from medplib.data.phantom import PhantomConfig, write_phantom

    config = PhantomConfig(seed=seed, train=train, val=val, test=test, zero_shot=zero_shot, volumes=volumes)
    print("\n".join(write_phantom(config, out, workers=workers).lines()))


def import_(manifest: Path, out: Path, options: ImportOptions = ImportOptions()) -> None:  # noqa: B008 (frozen)
    """Turn a CSV of image, mask, label into the MeCoVQA / SA-Med2D layout with conversations.

    Args:
        manifest: CSV with columns source, modality, image, mask, label, mask_rule and optional ones (see docs/data.md).
        out: new folder.
        options: see docs/data.md.
    """
    from medplib.data.prepare.importer import import_manifest

    print("\n".join(import_manifest(manifest, out, options=options).lines()))


def vqa_rad(json: Path, images: Path, out: Path, val_fraction: float = 0.15, seed: int = 0, max_side: int | None = None) -> None:
    """Convert the published VQA-RAD questions, split by case.

    Args:
        json: the published JSON, or a part of it.
        images: folder of the images.
        out: new folder.
        val_fraction: share of the cases that goes to val.
        seed: of the division.
        max_side: shrink images to this longest side in pixels; default: keep.
    """
    from medplib.data.prepare.vqa_rad import convert_vqa_rad

    print("\n".join(convert_vqa_rad(json, images, out, val_fraction=val_fraction, seed=seed, max_side=max_side).lines()))


def tokenizer(data: list[Path], out: Path, vocab_size: int = 1024) -> None:
    """Train a small tokenizer on the words of record files (for language models from scratch).

    Args:
        data: JSON files of records.
        out: new folder.
        vocab_size: entries, special tokens included.
    """
    from medplib.data.sources import read_records
    from medplib.paths import new_folder
    from medplib.tokenizer import train_tokenizer

    texts = [" " + turn.text for file in data for record in read_records(file) for turn in record.turns]
    if not texts:
        raise InputError(where="data", expected="records with text", found="none")
    made = train_tokenizer([*texts, " USER: ASSISTANT:"], vocab_size)
    with new_folder(out) as folder:
        made.save_pretrained(folder)
    print(f"{out}: {len(made)} entries from {len(texts)} turns")


def audit(
    root: Path,
    decode: bool = True,
    workers: int = 2,
    filtered: Path | None = None,
    drop: tuple[str, ...] = (),
) -> None:
    """Look for missing, unreadable, empty, misaligned and leaking data.

    Args:
        root: folder with conversation files.
        decode: open every image and mask once.
        workers: files opened at a time.
        filtered: new folder for copies of the conversation files without the records that have issues of the kinds in `drop`.
        drop: kinds of issue that cost a record its place in the copies; default: all.
    """
    from medplib.data.prepare.audit import Kind, write_filtered
    from medplib.data.prepare.audit import audit as look

    kinds = drop or get_args(Kind)
    if unknown := sorted(set(kinds) - set(get_args(Kind))):
        raise InputError(where="drop", expected=", ".join(get_args(Kind)), found=", ".join(unknown))
    report = look(root, decode=decode, workers=workers)
    print("\n".join(report.lines()))
    if filtered is not None:
        for file, count in write_filtered(report, filtered, kinds).items():
            print(f"{filtered / file}: {count} records left out")
    if report.issues:
        raise SystemExit(1)


def merge_masks(files: list[Path], root: Path, workers: int = 2) -> None:
    """Write the masks_merged/ files that official grounding records name: the union of all instances of a class in an image.

    Args:
        files: conversation files.
        root: SA-Med2D folder with masks/.
        workers: masks merged at a time.
    """
    from medplib.data.prepare.merge_masks import merge_masks as merge

    print("\n".join(merge(files, root, workers=workers).lines()))


def question_floor(train: list[Path], val: list[Path]) -> None:
    """Accuracy on closed questions that the words of the question alone give.

    Args:
        train: record files to learn from.
        val: record files to score.
    """
    from medplib.data.prepare.floor import question_only_floor
    from medplib.data.sources import read_records

    print(question_only_floor([r for f in train for r in read_records(f)], [r for f in val for r in read_records(f)]))


def main() -> None:
    """Choose the action by the first word."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    actions = (phantom, vqa_rad, tokenizer, audit, merge_masks, question_floor)
    run_actions({"import": import_, **{action.__name__: action for action in actions}})


if __name__ == "__main__":
    run_command(main)
