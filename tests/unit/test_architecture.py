"""Imports point downward, files stay readable, and nothing in the tree can run code from a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "medplib"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each layer may import from the package; bottom modules are free for all.
BOTTOM = {"types", "tokens", "tokenizer", "lineage", "errors", "paths", "config", "compat", "tensorfiles", "launch", "ranks", "schedule"}
ALLOWED = {
    "imaging": {"imaging"},
    "data": {"data", "imaging"},
    "models": {"models"},
    "convert": {"convert", "models"},
    "training": {"training", "models", "data", "imaging"},
    "inference": {"inference", "models", "data", "imaging"},
    "evaluation": {"evaluation", "inference", "data", "imaging"},
}


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medplib"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("medplib.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downward(file: Path) -> None:
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer in BOTTOM:
        assert _imports(file) <= BOTTOM
    elif layer in ALLOWED:
        assert _imports(file) <= ALLOWED[layer] | BOTTOM


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 80, node.name


@pytest.mark.parametrize("word", ["trust_remote_code=True", "weights_only=False", "import pickle", "yaml.load(", "eval("])
def test_nothing_runs_code_from_a_file(word: str) -> None:
    assert [f for f in FILES if word in f.read_text().replace(".eval(", "").replace("literal_eval(", "")] == []


def test_core_knows_no_stage_and_no_data_set() -> None:
    names = ("align", "vl_expert", "grounding_expert", "phantom", "mecovqa", "kvasir")
    for folder in ("models", "training", "inference"):
        for file in (PACKAGE / folder).rglob("*.py"):
            code = ast.unparse(ast.parse(file.read_text()))
            literals = [
                n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant) and isinstance(n.value, str) and len(n.value) < 40
            ]
            assert not [text for text in literals if any(text.lower() == name for name in names)], file
