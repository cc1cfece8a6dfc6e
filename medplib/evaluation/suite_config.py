"""Where a SuiteConfig comes from: a YAML file, or record files named on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from medplib.config import from_dict
from medplib.data.sources import read_records
from medplib.errors import InputError
from medplib.evaluation.suite import SuiteConfig


def suite_of_yaml(path: Path, *, limit: int = 0) -> SuiteConfig:
    """Read a suite; unknown keys and missing files are errors before anything runs."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(where=path, expected="a suite in YAML", found=str(error).splitlines()[0]) from None
    if not isinstance(data, dict):
        raise InputError(where=path, expected="a suite in YAML", found=type(data).__name__)
    config = from_dict(SuiteConfig, data, where=str(path))
    files = [*config.vqa, *config.region, *config.calibrate, *(f for group in config.grounding.values() for f in group)]
    for file in files:
        if not Path(file).exists():
            raise InputError(where=path, expected=f"the record file {file}", found="no such file")
    return replace(config, limit=limit) if limit else config


def suite_of_files(files: list[Path], *, limit: int, batch_size: int) -> SuiteConfig:
    """Grounding files become sets named after their files, region files the region block, all others the vqa block."""
    if not files:
        raise InputError(where="command line", expected="--suite FILE.yaml or --data FILE.json", found="neither")
    grounding: dict[str, tuple[str, ...]] = {}
    other: dict[str, list[str]] = {"vqa": [], "region": []}
    for file in files:
        tasks = {record.meta.task for record in read_records(file)}
        if "grounding" in tasks:
            if len(tasks) > 1:
                raise InputError(where=file, expected="grounding questions alone", found=", ".join(sorted(tasks)))
            grounding[file.stem.lower().replace("-", "_")] = (str(file),)
        else:
            other["region" if tasks == {"region"} else "vqa"].append(str(file))
    return SuiteConfig(grounding=grounding, vqa=tuple(other["vqa"]), region=tuple(other["region"]), limit=limit, batch_size=batch_size)
