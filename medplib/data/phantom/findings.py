"""Findings: each has an outline and an inner pattern of its own, relative to the host it sits in, in every modality.

Absolute brightness identifies none of them; what does is shape (round, lobed, ragged, angular, long) and pattern (flat, bright core,
fluid level, shell, stripes). The sign of the contrast depends on the modality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medplib.data.phantom.shapes import Outline, ellipse, polygon, wavy


@dataclass(frozen=True)
class Look:
    """`contrast`: mean strength against the host in the range 0..1. `inverted`: modalities in which its sign is turned around.
    `tint`: change of (red, green, blue) per unit of pattern in colour images.
    """

    contrast: float
    inverted: frozenset[str]
    tint: tuple[float, float, float]


LOOKS = {
    "cyst": Look(0.25, frozenset({"CT", "X-ray", "ultrasound", "PET"}), (0.7, 1.0, 1.5)),
    "nodule": Look(0.27, frozenset(), (1.1, 1.0, 0.7)),
    "haemorrhage": Look(0.27, frozenset({"MR", "PET"}), (-0.9, -1.5, -1.2)),
    "calcification": Look(0.38, frozenset({"MR"}), (1.0, 1.0, 1.0)),
    "ulcer": Look(0.28, frozenset(), (1.1, 1.1, 0.5)),
    "oedema": Look(0.24, frozenset({"CT", "ultrasound"}), (0.8, 1.1, 1.0)),
}


def outline_table(name: str, rng: np.random.Generator) -> np.ndarray:
    """Radius table of a finding, scaled so that its area is that of the unit disc."""
    if name == "cyst":
        axis = rng.uniform(0.90, 1.0)
        table = ellipse(axis, 1 / axis)
    elif name == "nodule":
        table = wavy(ellipse(1.0, 1.0), rng, 0.16, (int(rng.integers(4, 7)),))
    elif name == "haemorrhage":
        table = wavy(ellipse(1.0, rng.uniform(0.75, 0.95)), rng, 0.15, (3, 5, 7, 10))
    elif name == "calcification":
        table = polygon(rng, int(rng.integers(4, 7)), 0.62)
    elif name == "ulcer":
        table = wavy(ellipse(1.0, rng.uniform(0.8, 1.0)), rng, 0.08, (8, 11, 14))
    else:
        table = wavy(ellipse(1.35, 0.75), rng, 0.05, (2, 3, 4))
    return table / np.sqrt(np.mean(table**2))


def angle(name: str, rng: np.random.Generator) -> float:
    """Direction of a finding in radians: any, but blood settles, so the level of a haemorrhage is nearly horizontal in the body."""
    return float(np.pi / 2 + rng.uniform(-0.3, 0.3)) if name == "haemorrhage" else float(rng.uniform(-np.pi, np.pi))


def outline_at(table: np.ndarray, centre: tuple[float, float], radius: float, angle: float) -> Outline:
    """A finding of mean `radius` (body units) at a place."""
    return Outline(centre, angle, table * radius)


def _ramp(value: np.ndarray, at: float, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 around `at`."""
    return 0.5 + 0.5 * np.tanh((value - at) / width)


def pattern(name: str, rho: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Inner pattern in about -1..1.3 over relative radius and direction; the same in all modalities."""
    if name == "cyst":
        return np.ones_like(rho)
    if name == "nodule":
        return 1.35 - 0.90 * _ramp(rho, 0.55, 0.08)
    if name == "haemorrhage":
        return -0.45 + 1.65 * _ramp(rho * np.cos(theta), 0.0, 0.10)
    if name in ("calcification", "ulcer"):  # eggshell and crater; no modality shows both
        return -1.0 + 1.9 * _ramp(rho + 0.06 * np.cos(9 * theta), 0.62, 0.06)
    return 0.60 + 0.55 * np.cos(9.0 * rho * np.cos(theta))
