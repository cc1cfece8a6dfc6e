"""The closed world of the data set: modalities, regions, structures, their tissues, and what is held out of training.

A tissue has properties that no modality shows directly; each modality maps them to intensity in its own way (appearance.py), so the
same structure keeps its shape, place and texture everywhere while its brightness does not identify it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["radiological", "surface"]


@dataclass(frozen=True)
class Modality:
    """`prefix`: start of file names as SA-Med2D-20M writes them;"""

    name: str
    prefix: str
    group: Group


@dataclass(frozen=True)
class Tissue:
    """Latent properties in 0..1: X-ray density, water and fat content, tracer uptake, ultrasound reflectivity."""

    density: float
    water: float
    fat: float
    uptake: float
    echo: float


@dataclass(frozen=True)
class Region:
    """What a view shows: the anatomies that belong to it and what findings may sit in besides them (`ground`: the background)."""

    name: str
    anatomies: tuple[str, ...]
    hosts: tuple[str, ...]
    ground: str | None = None


MODALITIES = (
    Modality("CT", "ct_00", "radiological"),
    Modality("MR", "mr_t1", "radiological"),
    Modality("X-ray", "x_ray", "radiological"),
    Modality("ultrasound", "ultrasound_00", "radiological"),
    Modality("PET", "pet_00", "radiological"),
    Modality("fundus", "fundus_00", "surface"),
    Modality("dermoscopy", "dermoscopy_00", "surface"),
    Modality("endoscopy", "endoscopy_00", "surface"),
)

TISSUES = {
    "body": Tissue(0.42, 0.45, 0.45, 0.15, 0.42),
    "bone": Tissue(0.95, 0.15, 0.55, 0.12, 0.90),
    "left lung": Tissue(0.05, 0.10, 0.05, 0.30, 0.75),
    "right lung": Tissue(0.05, 0.10, 0.05, 0.30, 0.75),
    "heart": Tissue(0.62, 0.65, 0.15, 0.80, 0.15),
    "aorta": Tissue(0.78, 0.20, 0.10, 0.42, 0.08),
    "liver": Tissue(0.66, 0.36, 0.25, 0.50, 0.60),
    "spleen": Tissue(0.58, 0.72, 0.15, 0.40, 0.28),
    "stomach": Tissue(0.24, 0.82, 0.30, 0.32, 0.72),
    "left kidney": Tissue(0.72, 0.66, 0.40, 0.66, 0.24),
    "right kidney": Tissue(0.72, 0.66, 0.40, 0.66, 0.24),
    "bladder": Tissue(0.30, 0.95, 0.05, 0.95, 0.05),
    "uterus": Tissue(0.58, 0.74, 0.30, 0.56, 0.66),
    "rectum": Tissue(0.26, 0.55, 0.65, 0.58, 0.74),
    "left hip": Tissue(0.92, 0.15, 0.78, 0.06, 0.88),
    "right hip": Tissue(0.92, 0.15, 0.78, 0.06, 0.88),
}

REGIONS = {
    "chest": Region(
        "chest",
        ("left lung", "right lung", "heart", "aorta", "liver"),
        ("left lung", "right lung", "heart", "liver"),
    ),
    "abdomen": Region(
        "abdomen",
        ("liver", "spleen", "stomach", "left kidney", "right kidney", "aorta"),
        ("liver", "spleen", "stomach", "left kidney", "right kidney"),
    ),
    "pelvis": Region(
        "pelvis",
        ("bladder", "uterus", "rectum", "left hip", "right hip"),
        ("bladder", "uterus", "left hip", "right hip"),
    ),
    "eye": Region("eye", ("optic disc", "macula", "vessel tree", "scar"), ("optic disc", "macula"), ground="retina"),
    "skin": Region("skin", ("mole", "vessel tree", "scar"), ("mole",), ground="skin"),
    "bowel": Region("bowel", ("polyp", "lumen", "instrument", "vessel tree", "scar"), ("polyp",), ground="mucosa"),
}

REGIONS_OF = {
    "CT": ("chest", "abdomen", "pelvis"),
    "MR": ("chest", "abdomen", "pelvis"),
    "X-ray": ("chest", "abdomen", "pelvis"),
    "ultrasound": ("chest", "abdomen", "pelvis"),
    "PET": ("chest", "abdomen", "pelvis"),
    "fundus": ("eye",),
    "dermoscopy": ("skin",),
    "endoscopy": ("bowel",),
}

FINDINGS: dict[Group, tuple[str, ...]] = {
    "radiological": ("cyst", "nodule", "haemorrhage", "calcification", "oedema"),
    "surface": ("cyst", "nodule", "haemorrhage", "ulcer", "oedema"),
}

ALL_FINDINGS = ("cyst", "nodule", "haemorrhage", "calcification", "ulcer", "oedema")
ALL_ANATOMIES = tuple(dict.fromkeys(name for region in REGIONS.values() for name in region.anatomies))
CLASS_IDS = {name: i for i, name in enumerate((*ALL_ANATOMIES, *ALL_FINDINGS), start=1)}

# Held out of training, validation and test as something to locate: (modality, structure, task). The modality, the structure and the
# task are each trained in other combinations, so only their composition is new (the question Med-MAT asks, arXiv 2412.20070).
HELD_OUT = (
    ("CT", "spleen", "grounding"),
    ("CT", "nodule", "grounding"),
    ("MR", "left kidney", "grounding"),
    ("MR", "haemorrhage", "grounding"),
    ("X-ray", "heart", "grounding"),
    ("X-ray", "calcification", "grounding"),
    ("ultrasound", "liver", "grounding"),
    ("ultrasound", "cyst", "grounding"),
    ("PET", "bladder", "grounding"),
    ("fundus", "haemorrhage", "grounding"),
    ("dermoscopy", "ulcer", "grounding"),
    ("endoscopy", "nodule", "grounding"),
)
_HELD_OUT_PAIRS = frozenset((modality, name) for modality, name, _ in HELD_OUT)


def is_held_out(modality: str, name: str) -> bool:
    """Whether locating `name` in `modality` is kept for the zero-shot split."""
    return (modality, name) in _HELD_OUT_PAIRS


def modality_named(name: str) -> Modality:
    """The modality of that name."""
    return next(m for m in MODALITIES if m.name == name)


def names_of(modality: Modality, region: str) -> tuple[str, ...]:
    """Every structure that an image of this modality and region may show."""
    return (*REGIONS[region].anatomies, *FINDINGS[modality.group])
