"""One small data set for the whole folder, and facts of many cases without any drawing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medplib.data.phantom import PhantomConfig, write_phantom
from medplib.data.phantom.case import Facts, Seen
from medplib.data.phantom.catalog import ALL_FINDINGS, CLASS_IDS, FINDINGS, MODALITIES, REGIONS, REGIONS_OF

CONFIG = PhantomConfig(seed=3, train=64, val=16, test=16, zero_shot=36, volumes=3)


@pytest.fixture(scope="session")
def config() -> PhantomConfig:
    return CONFIG


@pytest.fixture(scope="session")
def random_facts() -> Callable[..., list[Facts]]:
    return _random_facts


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(CONFIG, out, workers=1)
    return out


@pytest.fixture(scope="session")
def records(root) -> dict[str, list[dict]]:
    return {
        str(path.relative_to(root)): json.loads(path.read_text())
        for folder in ("train", "val", "test", "zero_shot", "zeroshot4grounding")
        for path in sorted((root / folder).glob("*.json"))
    }


def _random_facts(split: str, count: int, seed: int = 0) -> list[Facts]:
    """Cases with the statistics of real ones, without images."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        modality = MODALITIES[index % len(MODALITIES)]
        region = str(rng.choice(REGIONS_OF[modality.name]))
        names = {n for n in REGIONS[region].anatomies if rng.random() < 0.6} | {n for n in FINDINGS[modality.group] if rng.random() < 0.35}
        hosts = [n for n in REGIONS[region].hosts if n in names] or [REGIONS[region].ground or "liver"]
        seen = []
        for name in CLASS_IDS:
            if name in names:
                finding = name in ALL_FINDINGS
                fraction = float(rng.uniform(0.007, 0.03) if finding else rng.uniform(0.02, 0.12))
                side = str(rng.choice(["left", "right"], p=[0.7, 0.3])) if finding else None
                seen.append(Seen(name, fraction, 1, (str(rng.choice(hosts)),) if finding else (), side))
        cases.append(Facts(split, index, index, modality, region, (128, 128), tuple(seen)))
    return cases
