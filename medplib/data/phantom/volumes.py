"""Volumes: stacks of frontal slices through structures that grow and shrink with depth, as NIfTI with oblique affines.

The affine follows NIfTI: voxel index to millimetres in RAS+. Image and label volume share it. nibabel reorders the axes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy.spatial.transform import Rotation

from medplib.data.phantom import anatomy, catalog
from medplib.data.phantom.anatomy import Part
from medplib.data.phantom.grey import draw_palette, render_grey
from medplib.data.phantom.scene import Layer, Scene, finding_layers, visible_parts
from medplib.data.phantom.shapes import View

_STREAM = 2_000_003  # keeps the random numbers of volumes apart from those of images
_KINDS = (("CT", "abdomen", "LPS"), ("MR", "pelvis", "RAS"), ("PET", "chest", "PIR"), ("CT", "chest", "ASL"), ("MR", "abdomen", "SRP"))


@dataclass(frozen=True)
class VolumeEntry:
    """A line of labels.json: files relative to the folder, what was imaged and which structures the labels hold."""

    image: str
    labels: str
    modality: str
    region: str
    axes: str
    present: tuple[str, ...]


@dataclass(frozen=True)
class Volume:
    """Values (X, Y, Z) in the unit of the modality (HU, arbitrary, SUV), labels (X, Y, Z) uint8 of class ids, affine 4x4 in mm."""

    values: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def _profile(depth: np.ndarray, centre: float, half: float) -> np.ndarray:
    """Relative size of a round thing at each depth: 1 at its centre, 0 from `half` on."""
    return np.sqrt(np.clip(1 - ((depth - centre) / half) ** 2, 0, 1))


def _slice_layers(parts: list[Part], sizes: np.ndarray, view: View) -> list[Layer]:
    """Anatomies of one slice; `sizes` (parts,) scale each outline, nearly 0 means it does not reach this depth."""
    x, y = view.body_grid()
    polar, drawn = [], []
    for part, size in zip(parts, sizes, strict=True):
        if size > 0.15:
            outline = part.outline.scaled(float(size))
            polar.append(outline.polar(x, y))
            drawn.append((part, outline))
    kept = visible_parts([rho < 1 for rho, _ in polar], [part.named for part, _ in drawn], smallest=4)
    layers = []
    for (part, outline), (rho, theta), mask in zip(drawn, polar, kept, strict=True):
        if mask is not None:
            edge = outline.mean_radius * view.pixels_per_unit
            layers.append(Layer(part.name, part.tissue, part.texture, rho, theta, mask, edge, part.named))
    return layers


def _findings_at(found: list[Layer], hosts: list[Layer], sizes: np.ndarray) -> list[Layer]:
    """Findings of one slice: those of the middle slice, scaled, inside their host."""
    layers = []
    for finding, size in zip(found, sizes, strict=True):
        host = next((layer for layer in hosts if layer.name == finding.host), None)
        if host is None or size < 0.2:
            continue
        rho = finding.rho / np.float32(size)
        mask = (rho < 1) & host.mask
        if mask.any():
            layers.append(
                Layer(finding.name, finding.tissue, "uniform", rho, finding.theta, mask, finding.edge * float(size), host=finding.host)
            )
    return layers


def _scenes(modality: str, region: str, view: View, slices: int, rng: np.random.Generator) -> list[Scene]:
    """One scene per slice, front to back, of the same body."""
    names = catalog.REGIONS[region].anatomies
    parts = anatomy.lay_out(region, frozenset(names) - {str(rng.choice(names))}, rng)
    depth = (np.arange(slices) + 0.5) / slices * 2 - 1
    extents = [(0.0, 3.0) if not p.named else (rng.uniform(-0.2, 0.2), rng.uniform(0.6, 1.1)) for p in parts]
    sizes = np.stack([_profile(depth, *extent) for extent in extents], axis=1)
    field = np.ones(view.size, bool)
    device = catalog.modality_named(modality)
    middle = _slice_layers(parts, sizes[slices // 2], view)
    found = finding_layers(device, region, view, field, middle, (str(rng.choice(("cyst", "nodule"))), True), rng)
    around = depth[slices // 2]
    finding_sizes = np.stack([_profile(depth, around, rng.uniform(0.25, 0.5)) for _ in found], axis=1) if found else np.zeros((slices, 0))
    scenes = []
    for i in range(slices):
        layers = _slice_layers(parts, sizes[i], view)
        scenes.append(Scene(device, region, view, field, (*layers, *_findings_at(found, layers, finding_sizes[i]))))
    return scenes


def _to_units(modality: str, grey: np.ndarray) -> np.ndarray:
    """Grey 0..1 to HU (int16) for CT, arbitrary units (int16) for MR, SUV (float32) for PET."""
    if modality == "CT":
        return np.round((grey - 0.42) * 2400 + 40).astype(np.int16)
    return np.round(grey * 1000).astype(np.int16) if modality == "MR" else (grey * 8).astype(np.float32)


def _affine(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Oblique affine of a stack whose axes run towards the patient's left, feet and back; slices are thicker than pixels."""
    in_plane = rng.uniform(3.2, 4.4)
    zooms = np.diag([in_plane, in_plane * rng.uniform(1.0, 1.15), rng.uniform(6.0, 9.0)])
    axes = np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]])  # columns: left, inferior, posterior in RAS+
    turn = Rotation.from_euler("xyz", rng.uniform(8, 18, 3) * rng.choice([-1, 1], 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ zooms
    affine[:3, 3] = -affine[:3, :3] @ (np.asarray(shape) - 1) / 2 + rng.uniform(-30, 30, 3)
    return affine


def render_volume(seed: int, index: int) -> Volume:
    """Draw one volume; it depends on nothing but the arguments."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, _STREAM]))
    modality, region, axes = _KINDS[index % len(_KINDS)]
    size = (int(rng.integers(56, 81)), int(rng.integers(64, 97)))
    view = View(size, float(np.radians(rng.uniform(-8, 8))), 0.85, (0.0, 0.0))
    scenes = _scenes(modality, region, view, int(rng.integers(20, 25)), rng)
    palette, fixed_seed = draw_palette(modality, rng), int(rng.integers(2**31))
    images, labels = [], []
    for scene in scenes:
        images.append(render_grey(scene, palette, np.random.default_rng(fixed_seed), rng))
        label = np.zeros(size, np.uint8)
        for layer in scene.named():
            label[layer.mask] = catalog.CLASS_IDS[layer.name]
        labels.append(label)
    stack = _to_units(modality, np.stack(images, axis=-1)).transpose(1, 0, 2)
    label_stack = np.stack(labels, axis=-1).transpose(1, 0, 2)
    affine = _affine(stack.shape, rng)
    change = orientations.ornt_transform(nib.io_orientation(affine), orientations.axcodes2ornt(axes))
    moved = affine @ orientations.inv_ornt_aff(change, stack.shape)
    return Volume(orientations.apply_orientation(stack, change), orientations.apply_orientation(label_stack, change), moved)


def write_volumes(seed: int, count: int, folder: Path) -> tuple[VolumeEntry, ...]:
    """Write `count` volumes and labels.json into `folder`; the folder is part of a data set that appears whole or not at all."""
    folder.mkdir(parents=True)
    entries = []
    names = {number: name for name, number in catalog.CLASS_IDS.items()}
    for index in range(count):
        volume = render_volume(seed, index)
        modality, region, axes = _KINDS[index % len(_KINDS)]
        stem = f"{modality.lower()}_{index:02d}"
        for suffix, array in (("", volume.values), ("_labels", volume.labels)):
            image = nib.Nifti1Image(np.ascontiguousarray(array), volume.affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / f"{stem}{suffix}.nii.gz")
        present = tuple(names[int(number)] for number in np.unique(volume.labels) if number)
        entries.append(VolumeEntry(f"{stem}.nii.gz", f"{stem}_labels.nii.gz", modality, region, axes, present))
    text = json.dumps({"classes": catalog.CLASS_IDS, "volumes": [asdict(entry) for entry in entries]}, indent=1)
    (folder / "labels.json").write_text(text + "\n", encoding="utf-8")
    return tuple(entries)
