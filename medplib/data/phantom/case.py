"""One finished case: image, masks and the facts that questions can be asked about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medplib.data.phantom import catalog
from medplib.data.phantom.catalog import HELD_OUT, MODALITIES, Modality
from medplib.data.phantom.colour import render_colour
from medplib.data.phantom.config import SPLITS
from medplib.data.phantom.grey import draw_palette, render_grey
from medplib.data.phantom.scene import Scene, build_scene


@dataclass(frozen=True)
class Seen:
    """A visible structure. `fraction`: share of the image its (united) mask covers; `hosts`: what a finding sits in, one per instance;
    `side`: the patient's side if every instance is on it; `instances`: how many masks it has.
    """

    name: str
    fraction: float
    instances: int
    hosts: tuple[str, ...] = ()
    side: str | None = None

    @property
    def is_finding(self) -> bool:
        """Whether it is a finding rather than an anatomy."""
        return bool(self.hosts)


@dataclass(frozen=True)
class Facts:
    """What is known about a case without its pixels; all that the conversations need."""

    split: str
    index: int
    number: int  # over all splits; the case id
    modality: Modality
    region: str
    size: tuple[int, int]
    seen: tuple[Seen, ...]

    @property
    def case(self) -> str:
        """Case id, unique over the data set."""
        return f"case_{self.number:05d}"

    @property
    def stem(self) -> str:
        """File name stem in the manner of SA-Med2D-20M."""
        return f"{self.modality.prefix}--phantom--{self.case}--2d_none"

    def mask_path(self, name: str, instance: int) -> str:
        """Path of the mask of one instance, relative to the root."""
        return f"masks/{self.stem}--{catalog.CLASS_IDS[name]:04d}_{instance:03d}.png"

    def target_path(self, seen: Seen) -> str:
        """Path of the mask that covers all instances: the single one, or their union."""
        if seen.instances == 1:
            return self.mask_path(seen.name, 1)
        return f"masks_merged/{self.stem}--{catalog.CLASS_IDS[seen.name]:04d}_merged.png"

    def find(self, name: str) -> Seen | None:
        """The visible structure of that name."""
        return next((seen for seen in self.seen if seen.name == name), None)


@dataclass(frozen=True)
class Case:
    """Image (H, W) or (H, W, 3) uint8, mask (H, W) bool per (name, instance), and the facts."""

    facts: Facts
    image: np.ndarray
    masks: dict[tuple[str, int], np.ndarray]


def _seen(scene: Scene) -> tuple[Seen, ...]:
    """Facts of the visible structures: anatomies in the order of the catalogue, then findings in the order of the catalogue."""
    found = []
    for name in catalog.CLASS_IDS:
        layers = [layer for layer in scene.named() if layer.name == name]
        if not layers:
            continue
        union = np.logical_or.reduce([layer.mask for layer in layers])
        hosts = tuple(layer.host for layer in layers if layer.host is not None)
        sides = {layer.side for layer in layers}
        side = sides.pop() if len(sides) == 1 else None
        found.append(Seen(name, float(union.mean()), len(layers), hosts, side))
    return tuple(found)


def _plan(split: str, index: int, rng: np.random.Generator) -> tuple[Modality, str, tuple[str, bool] | None]:
    """Modality, region and forced structure of a case. Modalities take turns; zero-shot cases take turns over what is held out."""
    if split != "zero_shot":
        modality = MODALITIES[index % len(MODALITIES)]
        return modality, str(rng.choice(catalog.REGIONS_OF[modality.name])), None
    name_of_modality, name, _ = HELD_OUT[index % len(HELD_OUT)]
    regions = [r for r in catalog.REGIONS_OF[name_of_modality] if name in catalog.ALL_FINDINGS or name in catalog.REGIONS[r].anatomies]
    wanted = (name, bool((index // len(HELD_OUT)) % 5 < 3))
    return catalog.modality_named(name_of_modality), str(rng.choice(regions)), wanted


def render_case(seed: int, split: str, index: int, number: int) -> Case:
    """Draw one case; it depends on nothing but the arguments.

    Args:
        seed: root seed of the data set.
        split: one of SPLITS.
        index: place in the split; decides the modality.
        number: case number over all splits, used for names only.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    modality, region, wanted = _plan(split, index, rng)
    scene = build_scene(modality, region, rng, wanted)
    if modality.group == "surface":
        image = render_colour(scene, rng)
    else:
        image = render_grey(scene, draw_palette(modality.name, rng), rng, rng)
    masks = {(layer.name, layer.instance): layer.mask for layer in scene.named()}
    facts = Facts(split, index, number, modality, region, scene.view.size, _seen(scene))
    return Case(facts, np.round(image * 255).astype(np.uint8), masks)
