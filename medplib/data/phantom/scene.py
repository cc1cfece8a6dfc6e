"""A case: the latent choices (modality, region, structures, places, view) and the exact masks that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from medplib.data.phantom import anatomy, catalog, findings, vessels
from medplib.data.phantom.anatomy import Texture
from medplib.data.phantom.catalog import Modality
from medplib.data.phantom.config import MIN_ANATOMY_FRACTION, MIN_FINDING_FRACTION
from medplib.data.phantom.shapes import View

NEAR_MIDLINE = 0.10  # body units; a finding nearer to the midline has no side to ask about


@dataclass(frozen=True)
class Layer:
    """One drawn thing on the pixel grid (H, W). `rho`, `theta`: relative radius and direction; `mask`: its visible part, bool;
    `edge`: pixels per unit of rho. `host` is set for findings only. `named` is False for context, which is never asked about.
    """

    name: str
    tissue: str
    texture: Texture
    rho: np.ndarray
    theta: np.ndarray
    mask: np.ndarray
    edge: float
    named: bool = True
    host: str | None = None
    instance: int = 1
    side: str | None = None

    @property
    def is_finding(self) -> bool:
        """Whether it sits in a host."""
        return self.host is not None


@dataclass(frozen=True)
class Scene:
    """A case before it has an appearance. Layers are in painting order; `field` (H, W) bool is what the device can see."""

    modality: Modality
    region: str
    view: View
    field: np.ndarray
    layers: tuple[Layer, ...]

    def named(self) -> list[Layer]:
        """The layers that are structures of the catalogue."""
        return [layer for layer in self.layers if layer.named]


def draw_view(rng: np.random.Generator) -> View:
    """A random image size (short side 96..160, aspect up to 1.6, either way up) and placement of the body in it."""
    short = int(rng.integers(96, 161))
    long = int(short * rng.uniform(1.0, 1.6))
    size = (short, long) if rng.random() < 0.5 else (long, short)
    scale = float(np.exp(rng.uniform(np.log(0.78), np.log(1.20))))
    reach = 0.22
    shift = (float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach)))
    return View(size, float(np.radians(rng.uniform(-20, 20))), scale, shift)


def field_of_view(modality: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """What the device can see: an ultrasound fan, the round aperture of a fundus camera or endoscope, else everything. (H, W) bool."""
    height, width = size
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    if modality == "ultrasound":
        half = np.radians(rng.uniform(38, 52))
        depth = max(height * 1.02, width / 2 / np.sin(half) * 0.92)
        apex_u, apex_v = width * rng.uniform(0.46, 0.54), -depth * rng.uniform(0.04, 0.10)
        radius = np.hypot(u - apex_u, v - apex_v)
        angle = np.arctan2(u - apex_u, v - apex_v)
        return (np.abs(angle) < half) & (radius > depth * 0.14) & (radius < depth * 1.08)
    if modality == "fundus":
        radius = 0.5 * np.sqrt(height * width) * rng.uniform(1.0, 1.12)
        return np.hypot(u - width / 2, v - height / 2) < radius
    if modality == "endoscopy" and rng.random() < 0.6:
        a, b = width * rng.uniform(0.49, 0.54), height * rng.uniform(0.49, 0.54)
        power = rng.uniform(3, 8)
        return np.abs((u - width / 2) / a) ** power + np.abs((v - height / 2) / b) ** power < 1
    return np.ones(size, bool)


def _choose_anatomies(region: str, wanted: tuple[str, bool] | None, rng: np.random.Generator) -> frozenset[str]:
    """A random subset, about two thirds of the region; a structure of `wanted` (name, present) is forced in or out."""
    names = catalog.REGIONS[region].anatomies
    count = int(rng.integers((len(names) + 1) // 2, len(names) + 1))
    if count == len(names):
        count -= int(rng.random() < 0.6)
    chosen = {str(name) for name in rng.permutation(names)[:count]}
    if wanted is not None and wanted[0] in names:
        (chosen.add if wanted[1] else chosen.discard)(wanted[0])
    return frozenset(chosen)


def anatomy_layers(region: str, view: View, field: np.ndarray, chosen: frozenset[str], rng: np.random.Generator) -> list[Layer]:
    """Layers with exact visible masks; structures with too little visible are left out."""
    x, y = view.body_grid()
    parts = anatomy.lay_out(region, chosen, rng)
    polar = [part.outline.polar(x, y) for part in parts]
    whole = [(rho < 1) & field for rho, _ in polar]
    smallest = MIN_ANATOMY_FRACTION * field.size
    kept = visible_parts(whole, [part.named for part in parts], smallest)
    layers = []
    for part, (rho, theta), mask in zip(parts, polar, kept, strict=True):
        if mask is not None:
            edge = part.outline.mean_radius * view.pixels_per_unit
            layers.append(Layer(part.name, part.tissue, part.texture, rho, theta, mask, edge, part.named))
    if "vessel tree" not in chosen:
        return layers
    tree = _vessel_layer(region, view, field, parts, rng)
    if tree.mask.sum() < smallest:
        return layers
    if region == "eye":  # vessels lie on the disc and belong to both
        return [*layers, tree]
    cover = np.zeros(view.size, bool)
    for layer in layers:
        cover |= layer.mask
    hidden = tree.mask & ~cover
    if hidden.sum() < smallest:
        return layers
    return [replace(tree, mask=hidden), *layers]


def visible_parts(whole: list[np.ndarray], named: list[bool], smallest: float) -> list[np.ndarray | None]:
    """Visible part of each shape when later ones cover earlier ones; None for a named one that keeps fewer than `smallest` pixels.

    Shapes are decided from the front to the back: one that is left out covers nothing.
    """
    cover = np.zeros_like(whole[0])
    kept: list[np.ndarray | None] = []
    for mask, is_named in zip(reversed(whole), reversed(named), strict=True):
        visible = mask & ~cover
        if is_named and visible.sum() < smallest:
            kept.append(None)
            continue
        cover |= mask
        kept.append(visible)
    return kept[::-1]


def _vessel_layer(region: str, view: View, field: np.ndarray, parts: list[anatomy.Part], rng: np.random.Generator) -> Layer:
    """The vessel tree: from the optic disc in the eye (or where it would be), else across the view."""
    if region == "eye":
        disc = next((part for part in parts if part.name == "optic disc"), None)
        macula = next((part for part in parts if part.name == "macula"), None)
        side = np.sign(disc.outline.centre[0]) if disc else -np.sign(macula.outline.centre[0]) if macula else -1.0
        root = disc.outline.centre if disc else (float(side) * 0.48, 0.0)
        branches = vessels.grow(rng, root, 0.0 if side < 0 else np.pi, fan=True)
    else:
        towards = float(rng.uniform(0, 2 * np.pi))
        root = (-np.cos(towards) * 0.9 + rng.uniform(-0.2, 0.2), -np.sin(towards) * 0.9 + rng.uniform(-0.2, 0.2))
        branches = vessels.grow(rng, (float(root[0]), float(root[1])), towards, fan=False)
    mask = vessels.rasterise(branches, view) & field
    rho = np.where(mask, np.float32(0.5), np.float32(2.0))
    return Layer("vessel tree", "vessel tree", "uniform", rho, np.zeros_like(rho), mask, 1.0)


def _room(host: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Distance in pixels (H, W) from each pixel to the nearest place outside the host, inside another finding or off the image."""
    free = np.pad((host & ~taken).astype(np.uint8), 1)
    return cv2.distanceTransform(free, cv2.DIST_L2, 5)[1:-1, 1:-1]


def _place(name: str, host: Layer, host_name: str, scene_view: View, taken: np.ndarray, rng: np.random.Generator) -> Layer | None:
    """A finding wholly inside the visible part of its host, away from other findings; None when there is no room for the smallest."""
    table = findings.outline_table(name, rng)
    area = host.mask.size
    smallest = np.sqrt(1.25 * MIN_FINDING_FRACTION * area / np.pi)
    wanted = np.sqrt(rng.uniform(0.016, 0.045) * area / np.pi)
    room = _room(host.mask, taken)
    reach = float(table.max())
    radius = min(float(wanted), (float(room.max()) - 2.0) / reach)
    if radius < smallest:
        return None
    rows, columns = np.nonzero(room >= radius * reach + 1.5)
    at = int(rng.integers(len(rows)))
    centre = scene_view.to_body(float(columns[at]), float(rows[at]))
    outline = findings.outline_at(table, centre, radius / scene_view.pixels_per_unit, findings.angle(name, rng))
    x, y = scene_view.body_grid()
    rho, theta = outline.polar(x, y)
    mask = (rho < 1) & host.mask
    side = None if abs(centre[0]) < NEAR_MIDLINE else "left" if centre[0] > 0 else "right"
    return Layer(name, host_name, "uniform", rho, theta, mask, radius, host=host_name, side=side)


def _hosts(region: str, view: View, field: np.ndarray, layers: list[Layer]) -> list[tuple[str, Layer]]:
    """The places a finding can sit in: the region's hosts that are visible, and the ground between all structures if it counts."""
    rule = catalog.REGIONS[region]
    hosts = [(layer.name, layer) for layer in layers if layer.name in rule.hosts]
    if rule.ground is not None:
        free = field.copy()
        for layer in layers:
            if layer.name != "vessel tree":
                free &= ~layer.mask
        empty = np.zeros(view.size, np.float32)
        ground = Layer(rule.ground, rule.ground, "uniform", empty, empty, free, 1.0, named=False)
        hosts += [(rule.ground, ground)] * max(1, len(hosts))
    return hosts


def finding_layers(
    modality: Modality,
    region: str,
    view: View,
    field: np.ndarray,
    layers: list[Layer],
    wanted: tuple[str, bool] | None,
    rng: np.random.Generator,
) -> list[Layer]:
    """Up to three kinds of finding, one or two of each; the one in `wanted` (name, present) is forced in or out."""
    hosts = _hosts(region, view, field, layers)
    kinds = [str(name) for name in rng.permutation(catalog.FINDINGS[modality.group]) if rng.random() < 0.45][:3]
    if wanted is not None and wanted[0] in catalog.ALL_FINDINGS:
        kinds = [name for name in kinds if name != wanted[0]]
        if wanted[1]:
            kinds = [wanted[0], *kinds[:2]]
    taken = np.zeros(view.size, bool)
    placed: list[Layer] = []
    for name in kinds:
        instances = 2 if rng.random() < 0.2 else 1
        for host_name, host in [hosts[i] for i in rng.permutation(len(hosts))]:
            layer = _place(name, host, host_name, view, taken, rng)
            if layer is None:
                continue
            number = 1 + sum(p.name == name for p in placed)
            placed.append(replace(layer, instance=number))
            taken |= layer.rho < 1.25
            if number == instances:
                break
    return placed


def _under_findings(layers: list[Layer], found: list[Layer]) -> list[Layer]:
    """Vessels are not hosts: what a finding covers of them is not visible, and a tree that keeps too little is taken out."""
    kept = []
    for layer in layers:
        if layer.name == "vessel tree" and found:
            mask = layer.mask & ~np.logical_or.reduce([finding.mask for finding in found])
            if mask.sum() < MIN_ANATOMY_FRACTION * mask.size:
                continue
            layer = replace(layer, mask=mask)
        kept.append(layer)
    return kept


def build_scene(modality: Modality, region: str, rng: np.random.Generator, wanted: tuple[str, bool] | None = None) -> Scene:
    """Draw a case.

    Args:
        modality: how it will be imaged.
        region: what is shown, one of the modality's regions.
        rng: source of every choice.
        wanted: a structure that must be there or must not be there; it can still be lost to the edge of the image.
    """
    view = draw_view(rng)
    field = field_of_view(modality.name, view.size, rng)
    chosen = _choose_anatomies(region, wanted, rng)
    layers = anatomy_layers(region, view, field, chosen, rng)
    found = finding_layers(modality, region, view, field, layers, wanted, rng)
    return Scene(modality, region, view, field, (*_under_findings(layers, found), *found))
