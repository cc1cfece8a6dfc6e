"""Builds `masks_merged/`, which MeCoVQA's grounding files name and no download holds (`python -m medplib.prepare merge_masks`).

`<stem>--<class>_merged.png` is the union of the instance masks `masks/<stem>--<class>_<instance>.png` of SA-Med2D.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medplib.errors import InputError
from medplib.imaging.mask import read_mask, write_mask_png
from medplib.paths import inside

_log = logging.getLogger(__name__)

_WANTED = re.compile(
    r"<mask>\s*(masks_merged/([^<>]*)_merged(?:\.png)?)\s*</mask>|<region>\s*(masks_merged/([^<>]*)_merged(?:\.png)?)\s*</region>"
)
_INSTANCE = re.compile(r"^(.*--\d{4})_\d{3,}\.png$")


@dataclass(frozen=True)
class MergeSummary:
    """Unions that the files name: written now, there before, and those for which `masks/` has no instance (their names)."""

    written: int
    existing: int
    without_instances: tuple[str, ...]

    def lines(self) -> list[str]:
        """The summary as text, for people."""
        lines = [f"unions: {self.written} written, {self.existing} there before, {len(self.without_instances)} without instance masks"]
        return lines + [f"  no masks/{name}_*.png" for name in self.without_instances[:5]]


def merge_masks(files: Sequence[Path], root: Path, workers: int = 2) -> MergeSummary:
    """Write every union that conversation files name and the root lacks.

    Args:
        files: MeCoVQA JSON files.
        root: folder with masks/; unions go to masks_merged/ in it, each appearing whole or not at all.
        workers: unions made at a time.

    Raises:
        InputError: a file cannot be read, a path leaves the root, or the instances of a class differ in size.
    """
    wanted = sorted({name for file in files for name in _names_in(Path(file))})
    targets = {name: inside(root, f"masks_merged/{name}_merged.png", where=root) for name in wanted}
    missing = [name for name in wanted if not targets[name].is_file()]
    instances = _instances(inside(root, "masks", where=root)) if missing else {}
    possible = [name for name in missing if name in instances]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda name: _merge(instances[name], targets[name]), possible):
            pass
    without = tuple(name for name in missing if name not in instances)
    if without:
        _log.warning("%s: %d unions cannot be made, masks/ has no instance of them; the first is %s", root, len(without), without[0])
    return MergeSummary(len(possible), len(wanted) - len(missing), without)


def _names_in(file: Path) -> set[str]:
    """`<stem>--<class>` of every union that a file names. Read as text: the tags are the same in any nesting of the JSON."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(where=file, expected="a readable JSON file", found=str(error)) from error
    return {match.group(2) or match.group(4) for match in _WANTED.finditer(text)}


def _instances(folder: Path) -> Mapping[str, list[Path]]:
    """`<stem>--<class>` -> instance masks, from one listing of the folder."""
    found: dict[str, list[Path]] = defaultdict(list)
    if not folder.is_dir():
        raise InputError(where=folder, expected="the folder of the instance masks", found="no such folder")
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _INSTANCE.match(entry.name):
                found[match.group(1)].append(folder / entry.name)
    return found


def _merge(paths: Sequence[Path], target: Path) -> None:
    """Union of masks of one size."""
    union_HW = read_mask(paths[0], size=None).copy()
    for path in paths[1:]:
        union_HW |= read_mask(path, size=union_HW.shape)
    if not np.any(union_HW):
        raise InputError(where=target.name, expected="instance masks with foreground", found=f"{len(paths)} empty ones")
    write_mask_png(union_HW, target)
