"""Options of an import, by themselves: the command line shows them without loading what an import needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

OnEmpty = Literal["error", "skip", "absent"]
"""What to do about a mask without foreground."""


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import.

    Args:
        root: folder that the paths of the manifest are relative to; default: the folder of the manifest.
        labels: JSON {"label": "name"} that renames labels.
        strict_labels: whether a label that `labels` does not have is an error.
        splits: JSON {source: {train|val|test: [image, ...]}}; a column `split` of the manifest has priority.
        val_fraction: share of the patients of each source for val, when neither a column nor a file tells the split.
        test_fraction: likewise for test.
        patient_regex: source -> regular expression with one group that is the patient, searched in the image's path; used where the
            column `patient` is missing. A source with neither counts every image as its own patient.
        anatomy: source -> part of the body, where the column `anatomy` is missing. Names of one part count as absent in another.
        exhaustive: sources in which every structure that they name is labelled wherever it is visible, so that unlabelled means absent.
        on_empty: a mask without foreground is an error, is left out (counted), or says that the structure is absent.
        max_side: shrink images and masks to this longest side in pixels; default: keep.
        paraphrases: wordings of the question for each structure in train.
        absent_ratio: questions for absent structures per question for present ones.
        seed: seed of the split and of the conversations.
        workers: images decoded at a time.
    """

    root: Path | None = None
    labels: Path | None = None
    strict_labels: bool = False
    splits: Path | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    patient_regex: dict[str, str] = field(default_factory=dict)
    anatomy: dict[str, str] = field(default_factory=dict)
    exhaustive: tuple[str, ...] = ()
    on_empty: OnEmpty = "error"
    max_side: int | None = None
    paraphrases: int = 2
    absent_ratio: float = 0.5
    seed: int = 0
    workers: int = 2
