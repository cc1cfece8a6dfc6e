"""One number as it must be published: value, number of cases, interval, and the rule by which it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medplib.errors import InputError
from medplib.evaluation.bootstrap import Bootstrap, Interval, macro_mean
from medplib.paths import atomic_path


@dataclass(frozen=True)
class Figure:
    """A published number, a fraction of 1 unless `metric` says otherwise.

    Args:
        value: finite; a figure that is undefined does not exist (None in its place).
        n: cases (or, for a macro mean, groups) behind it.
        ci95: bounds of the interval, None where fewer than two patients are behind it.
        metric: what one case contributes, in words.
        protocol: name of the protocol.
        policy: threshold and treatment of the empty case.
        aggregation: how cases become one number.
        interval: how the interval was made; empty without one.
    """

    value: float
    n: int
    ci95: tuple[float, float] | None
    metric: str
    protocol: str
    policy: str
    aggregation: str
    interval: str = ""


@dataclass(frozen=True)
class NamedFigure:
    """A figure and its dotted name, such as `grounding.in_domain.mdice`."""

    name: str
    figure: Figure


@dataclass(frozen=True)
class Rule:
    """What the figures of one block share: metric in words, protocol, policy."""

    metric: str
    protocol: str
    policy: str

    def mean(self, values: Sequence[float] | np.ndarray, clusters: Sequence[object], bootstrap: Bootstrap) -> Figure | None:
        """Plain mean over cases; None without cases."""
        if len(values) == 0:
            return None
        return self._figure(float(np.mean(values)), len(values), bootstrap.mean(values, clusters), "mean over cases")

    def macro(
        self, values: Sequence[float] | np.ndarray, groups: Sequence[str], clusters: Sequence[object], bootstrap: Bootstrap, over: str
    ) -> Figure | None:
        """Mean of per-group means, n = number of groups; None without cases. `over` names what a group is."""
        if len(values) == 0:
            return None
        interval = bootstrap.macro_mean(values, groups, clusters)
        return self._figure(macro_mean(values, groups), len(set(groups)), interval, f"mean over {over} of the mean within each")

    def ratio(
        self,
        numerators: Sequence[float] | np.ndarray,
        denominators: Sequence[float] | np.ndarray,
        clusters: Sequence[object],
        bootstrap: Bootstrap,
        aggregation: str = "sum over cases / sum over cases",
    ) -> Figure | None:
        """Ratio of sums; None where the denominator is zero. n = cases with a non-zero denominator."""
        bottom = float(np.sum(denominators))
        if bottom == 0:
            return None
        interval = bootstrap.ratio(numerators, denominators, clusters)
        return self._figure(float(np.sum(numerators)) / bottom, int(np.count_nonzero(denominators)), interval, aggregation)

    def plain(self, value: float, n: int, aggregation: str, interval: Interval | None = None) -> Figure:
        """A figure computed elsewhere."""
        return self._figure(value, n, interval, aggregation)

    def _figure(self, value: float, n: int, interval: Interval | None, aggregation: str) -> Figure:
        bounds = None if interval is None else (interval.low, interval.high)
        return Figure(value, n, bounds, self.metric, self.protocol, self.policy, aggregation, "" if interval is None else interval.method)


def named(prefix: str, figures: Iterable[tuple[str, Figure | None]]) -> list[NamedFigure]:
    """Figures under `prefix`, those that do not exist left out. Dots inside a single name become underscores, since dots nest."""
    return [NamedFigure(f"{prefix}.{name}" if prefix else name, figure) for name, figure in figures if figure is not None]


def key(label: str) -> str:
    """A group label as one part of a dotted name: `X-ray v1.2` -> `x-ray_v1_2`; an empty label is `unnamed`."""
    return "_".join(label.lower().replace(".", " ").split()) or "unnamed"


def write_metrics(path: Path, figures: Iterable[NamedFigure]) -> None:
    """Write metrics.json, atomically: dotted names become nested objects, each leaf has value, n, ci95 and its rule.

    Raises:
        InputError: a name occurs twice, is empty in a part, or is both a figure and a block; a value is not finite.
    """
    tree: dict[str, object] = {}
    for item in figures:
        *blocks, leaf = item.name.split(".")
        node = tree
        for block in blocks:
            below = node.setdefault(block, {})
            if not isinstance(below, dict) or "value" in below:
                raise _bad_name(path, item.name, f"{block!r} is a figure already")
            node = below
        if leaf in node or "value" in node or not all(item.name.split(".")):
            raise _bad_name(path, item.name, "it occurs twice or has an empty part")
        if not math.isfinite(item.figure.value):
            raise InputError(where=f"{path} {item.name}", expected="a finite value", found=str(item.figure.value))
        node[leaf] = asdict(item.figure)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bad_name(path: Path, name: str, found: str) -> InputError:
    return InputError(where=path, expected=f"every figure to have a name of its own ({name!r})", found=found)
