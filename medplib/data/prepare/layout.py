"""The folder that an import makes: the layout of SA-Med2D with MeCoVQA conversations.

images/  masks/  masks_merged/  SAMed2D_v1.json  SAMed2D_v1_class_mapping_id.json  import.json
train/ val/ test/   each with MeCoVQA-{Grounding,Region,Closed,Complex}.json and alignment.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from medplib.data.sources.mecovqa import read_mecovqa
from medplib.data.sources.mecovqa_write import write_mecovqa
from medplib.paths import atomic_path
from medplib.types import Record, Task

TASK_FILES: dict[Task, str] = {
    "grounding": "MeCoVQA-Grounding.json",
    "region": "MeCoVQA-Region.json",
    "vqa_closed": "MeCoVQA-Closed.json",
    "vqa_open": "MeCoVQA-Complex.json",
    "caption": "alignment.json",
}


def write_splits(root: Path, records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    """Write the records of each split into one file per task, read every file back, and count.

    Args:
        root: folder that holds the images and masks.
        records: by split.

    Returns:
        counts[split][task].
    """
    counts: dict[str, dict[str, int]] = {}
    for split, members in records.items():
        for task, name in TASK_FILES.items():
            chosen = [record for record in members if record.meta.task == task]
            write_mecovqa(chosen, root / split / name, root)
            # A written file that does not read back the same is our fault; better now than in training.
            if read_mecovqa(root / split / name, root) != chosen:
                raise RuntimeError(f"{split}/{name} does not read back as it was written")
            counts.setdefault(split, {})[task] = len(chosen)
    return counts


def write_json(content: object, file: Path) -> None:
    """Write JSON text, whole or not at all."""
    with atomic_path(file) as part:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
