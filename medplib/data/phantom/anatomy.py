"""Where anatomies lie and how they are drawn: deformable outlines with their relations (sides, pairs, above and below, inside).

Every modality of the radiological group shares these frontal layouts, so that what is learnt about a structure in one modality can be
used in another. The image shows a person who faces the reader: the patient's right is on the left of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medplib.data.phantom.shapes import Outline, ellipse, notched, wavy

Texture = Literal[
    "uniform", "grain", "spots", "streaks", "cortex", "chambers", "lumen", "wall", "stripe", "trabeculae", "network", "metal", "cup"
]


@dataclass(frozen=True)
class Part:
    """A structure to draw. `named`: it is in the catalogue (else it is context, such as the spine, that no question asks about)."""

    name: str
    outline: Outline
    texture: Texture
    tissue: str
    named: bool = True


@dataclass(frozen=True)
class Plan:
    """The mean outline of an anatomy: centre, half axes, angle (degrees), dent (direction in degrees, relative depth) and texture."""

    name: str
    centre: tuple[float, float]
    axes: tuple[float, float]
    angle: float = 0.0
    dent: tuple[float, float] = (0.0, 0.0)
    texture: Texture = "uniform"
    power: float = 2.0
    context: bool = False


BODY = Plan("body", (0.0, 0.0), (0.98, 1.25), power=2.8, texture="grain", context=True)
SPINE = Plan("bone", (0.0, 0.0), (0.085, 1.2), power=6.0, texture="trabeculae", context=True)

# In painting order: what comes later lies in front.
PLANS: dict[str, tuple[Plan, ...]] = {
    "chest": (
        SPINE,
        Plan("right lung", (-0.50, -0.16), (0.31, 0.60), 4, (35, 0.20), "streaks"),
        Plan("left lung", (0.50, -0.16), (0.30, 0.60), -4, (150, 0.30), "streaks"),
        Plan("liver", (-0.38, 0.70), (0.52, 0.29), -8, (60, 0.12), "spots"),
        Plan("aorta", (0.07, -0.42), (0.13, 0.46), 3, power=2.6),
        Plan("heart", (0.16, 0.22), (0.34, 0.28), 38, (-60, 0.10), "chambers"),
    ),
    "abdomen": (
        SPINE,
        Plan("right kidney", (-0.46, 0.42), (0.21, 0.34), 10, (0, 0.28), "cortex"),
        Plan("left kidney", (0.48, 0.36), (0.21, 0.34), -10, (180, 0.28), "cortex"),
        Plan("aorta", (0.10, 0.34), (0.12, 0.60), 0, power=2.6),
        Plan("spleen", (0.66, -0.40), (0.22, 0.34), 16, (180, 0.14), "grain"),
        Plan("liver", (-0.42, -0.40), (0.50, 0.32), -18, (60, 0.16), "spots"),
        Plan("stomach", (0.25, -0.36), (0.21, 0.33), 28, (160, 0.26), "wall"),
    ),
    "pelvis": (
        Plan("bone", (0.0, -0.55), (0.17, 0.34), power=2.4, texture="trabeculae", context=True),
        Plan("bone", (-0.60, -0.42), (0.24, 0.42), 28, texture="trabeculae", context=True),
        Plan("bone", (0.60, -0.42), (0.24, 0.42), -28, texture="trabeculae", context=True),
        Plan("right hip", (-0.66, 0.36), (0.25, 0.27), 0, (120, 0.06), "trabeculae"),
        Plan("left hip", (0.66, 0.36), (0.25, 0.27), 0, (60, 0.06), "trabeculae"),
        Plan("rectum", (0.0, 0.80), (0.25, 0.19), 0, texture="lumen"),
        Plan("uterus", (0.02, -0.12), (0.29, 0.20), 8, (90, 0.10), "stripe"),
        Plan("bladder", (0.0, 0.34), (0.33, 0.25), 0, (-90, 0.10)),
    ),
    "skin": (
        Plan("scar", (-0.25, 0.55), (0.55, 0.13), texture="stripe", power=2.6),
        Plan("mole", (0.1, -0.1), (0.44, 0.38), texture="network"),
    ),
    "bowel": (
        Plan("lumen", (-0.35, -0.35), (0.36, 0.30), texture="lumen"),
        Plan("scar", (0.45, -0.60), (0.50, 0.13), texture="stripe", power=2.6),
        Plan("polyp", (0.30, 0.25), (0.38, 0.34), texture="uniform"),
        Plan("instrument", (-0.55, 0.75), (0.80, 0.12), -40, texture="metal", power=8.0),
    ),
    "eye": (
        Plan("scar", (0.1, 0.68), (0.50, 0.14), texture="stripe", power=2.6),
        Plan("macula", (0.22, 0.04), (0.27, 0.24), texture="cup"),
        Plan("optic disc", (-0.48, 0.0), (0.25, 0.28), texture="cup"),
    ),
}

ANATOMY_TEXTURES: dict[str, Texture] = {plan.name: plan.texture for plans in PLANS.values() for plan in plans if not plan.context}

_ROUGHNESS = {"mole": 0.12, "polyp": 0.06, "scar": 0.05, "instrument": 0.0, "bone": 0.02, "body": 0.02, "optic disc": 0.02}
_ROAMING = {"mole": 0.30, "polyp": 0.30, "lumen": 0.25, "scar": 0.30, "instrument": 0.15}  # surfaces have no fixed places


def draw(plan: Plan, rng: np.random.Generator) -> Part:
    """One individual's version of a plan."""
    roam = _ROAMING.get(plan.name, 0.045)
    low, high = (0.95, 1.0) if plan.context else (0.92, 1.12)
    a, b = (axis * rng.uniform(low, high) for axis in plan.axes)
    radius = ellipse(a, b, plan.power)
    if plan.dent[1]:
        direction = np.radians(plan.dent[0] - plan.angle)
        radius = notched(radius, float(direction), plan.dent[1] * rng.uniform(0.7, 1.3), 0.5)
    radius = wavy(radius, rng, _ROUGHNESS.get(plan.name, 0.035), (2, 3, 4, 5, 6))
    centre = tuple(c + rng.uniform(-roam, roam) for c in plan.centre)
    turn = 180.0 if plan.name in ("scar", "mole", "polyp") else 20.0 if plan.name == "instrument" else 7.0
    if plan.context:
        centre, turn = plan.centre, 0.0
    angle = np.radians(plan.angle + rng.uniform(-turn, turn))
    return Part(plan.name, Outline((centre[0], centre[1]), float(angle), radius), plan.texture, plan.name, named=not plan.context)


def mirrored(part: Part) -> Part:
    """The part reflected about the vertical midline (a right eye from a left one)."""
    outline = part.outline
    count = len(outline.radius)
    index = (count // 2 - np.arange(count)) % count  # direction t becomes pi - t in a frame whose angle changes its sign
    turned = Outline((-outline.centre[0], outline.centre[1]), -outline.angle, outline.radius[index])
    return replace(part, outline=turned)


def lay_out(region: str, chosen: frozenset[str], rng: np.random.Generator) -> list[Part]:
    """The parts of a region in painting order: all context, and the anatomies in `chosen`.

    Every plan is drawn whether it is chosen or not, so that leaving one out does not change the others. Vessels are not a part: they
    are a tree (vessels.py).
    """
    drawn = [draw(plan, rng) for plan in PLANS[region]]
    if region == "eye" and rng.random() < 0.5:
        drawn = [mirrored(part) for part in drawn]
    return [part for part in drawn if not part.named or part.name in chosen]
