from __future__ import annotations

import json

import pytest

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap
from medplib.evaluation.figures import Figure, NamedFigure, Rule, key, named, write_metrics

RULE = Rule("Dice", "strict", "threshold 0.5")
FAST = Bootstrap(resamples=100)
FIGURE = RULE.plain(0.5, 4, "mean over cases")


def test_metrics_json_is_nested_and_says_its_rule(tmp_path):
    figure = RULE.mean([0.2, 0.4, 0.9], "abc", FAST)
    write_metrics(
        tmp_path / "metrics.json", [NamedFigure("grounding.in_domain.mdice", figure), NamedFigure("grounding.zero.mdice", FIGURE)]
    )
    leaf = json.loads((tmp_path / "metrics.json").read_text())["grounding"]["in_domain"]["mdice"]
    assert leaf["value"] == pytest.approx(0.5)
    assert leaf["n"] == 3
    assert leaf["ci95"][0] < 0.5 < leaf["ci95"][1]
    assert (leaf["metric"], leaf["protocol"], leaf["policy"], leaf["aggregation"]) == ("Dice", "strict", "threshold 0.5", "mean over cases")
    assert "B=100" in leaf["interval"]


@pytest.mark.parametrize("names", [["a.b", "a.b"], ["a", "a.b"], ["a.b", "a"], ["a..b"], [""], ["a."]])
def test_clashing_names_are_refused_and_nothing_is_written(tmp_path, names):
    with pytest.raises(InputError):
        write_metrics(tmp_path / "m.json", [NamedFigure(name, FIGURE) for name in names])
    assert not list(tmp_path.iterdir())


def test_non_finite_value_is_refused(tmp_path):
    bad = Figure(float("nan"), 1, None, "Dice", "strict", "", "")
    with pytest.raises(InputError, match=r"a\.b"):
        write_metrics(tmp_path / "m.json", [NamedFigure("a.b", bad)])


def test_rule_without_cases_has_no_figure():
    assert RULE.mean([], [], FAST) is None
    assert RULE.macro([], [], [], FAST, "modalities") is None
    assert RULE.ratio([0, 0], [0, 0], "ab", FAST) is None


def test_macro_counts_groups_and_ratio_counts_cases():
    macro = RULE.macro([1, 0, 0], ["ct", "mr", "mr"], "abc", FAST, "modalities")
    assert (macro.value, macro.n, macro.aggregation) == (0.5, 2, "mean over modalities of the mean within each")
    ratio = RULE.ratio([1, 1, 0, 0], [1, 1, 1, 0], "abcd", FAST)
    assert (ratio.value, ratio.n) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize(
    ("label", "want"), [("X-ray v1.2", "x-ray_v1_2"), ("", "unnamed"), (".", "unnamed"), ("Left  Kidney", "left_kidney")]
)
def test_key(label, want):
    assert key(label) == want


def test_named_drops_what_does_not_exist():
    assert [f.name for f in named("g", [("a", FIGURE), ("b", None)])] == ["g.a"]
    assert [f.name for f in named("", [("a", FIGURE)])] == ["a"]
