"""The model, its training step, generation and preprocessing against values of the published code."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from medplib.models.sam import official_sam_key
from tests.parity import golden
from tests.parity.fixtures import DATA, READ
from tests.parity.golden_metrics import metric_rows
from tests.parity.golden_preprocessing import preprocessing_rows
from tests.parity.golden_sam import grounder, sam_rows

FIXTURES = ("llm_dense", "llm_moe")
_SHARED = Path(os.environ.get("MEDPLIB_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
PREPROCESSING = _SHARED / "parity" / "dev" / "preprocessing"


def check(rows) -> None:
    """Every quantity reaches its goal, which is tighter than the tolerance."""
    rows = list(rows)
    assert rows
    assert {f"{row.item}: {row.quantity}": row.difference for row in rows if not row.difference <= row.goal} == {}


@pytest.mark.parametrize("folder", FIXTURES)
def test_forward(folder):
    check(golden.forward_rows(folder))


def test_forward_with_two_experts_per_token():
    check(golden.forward_rows("llm_moe", top_k=2))


@pytest.mark.parametrize("folder", FIXTURES)
def test_losses_and_gradients(folder):
    check(golden.loss_rows(folder))


def test_losses_with_two_experts_per_token():
    check(golden.loss_rows("llm_moe", top_k=2))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_generation(kind):
    check(golden.generation_rows(kind))


def test_gate():
    check(golden.gating_rows())


def test_grounder():
    check(sam_rows())


def test_metrics():
    check(metric_rows())


def test_every_golden_tensor_is_compared():
    generators = [golden.forward_rows(folder) for folder in FIXTURES]
    generators += [golden.forward_rows("llm_moe", top_k=2), golden.gating_rows(), sam_rows()]
    generators += [golden.generation_rows(kind) for kind in ("dense", "moe")]
    for rows in generators:
        list(rows)
    files = {*DATA.rglob("*outputs.safetensors"), *DATA.rglob("gating_cases.safetensors")}
    assert set(READ) == files
    left = {f"{file.relative_to(DATA)}: {name}" for file in files for name in load_file(file).keys() - READ[file]}
    assert left == set()


def test_names_of_the_grounder_map_both_ways():
    ours = set(grounder().state_dict())
    assert len({official_sam_key(name) for name in ours}) == len(ours)


@pytest.mark.skipif(not PREPROCESSING.is_dir(), reason="the fixture's real images are not part of the project")
def test_preprocessing():
    check(preprocessing_rows(PREPROCESSING))
