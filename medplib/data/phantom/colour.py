"""Appearance of the surface group: fundus, dermoscopy and endoscopy, in colour with their own illumination and disturbances."""

from __future__ import annotations

import cv2
import numpy as np

from medplib.data.phantom import findings
from medplib.data.phantom.marks import draw_hair
from medplib.data.phantom.scene import Layer, Scene
from medplib.data.phantom.texture import coverage, smooth_noise, texture

_GROUNDS = {  # two ends of the colour of the ground; an image lies between them
    "fundus": ((0.78, 0.40, 0.20), (0.58, 0.26, 0.14)),
    "dermoscopy": ((0.86, 0.68, 0.58), (0.55, 0.37, 0.28)),
    "endoscopy": ((0.80, 0.46, 0.38), (0.62, 0.30, 0.26)),
}

# Colour of a structure: factor on the ground, then an amount added.
_STRUCTURES = {
    "optic disc": ((0.9, 1.0, 1.0), (0.26, 0.34, 0.20)),
    "macula": ((0.66, 0.60, 0.60), (0.0, 0.0, 0.0)),
    "vessel tree": ((0.68, 0.42, 0.48), (0.0, 0.0, 0.0)),
    "scar": ((0.9, 0.9, 0.9), (0.20, 0.26, 0.26)),
    "mole": ((0.62, 0.52, 0.48), (0.0, 0.0, 0.0)),
    "polyp": ((1.0, 1.0, 1.0), (0.14, 0.13, 0.10)),
    "lumen": ((0.42, 0.36, 0.36), (0.0, 0.0, 0.0)),
    "instrument": ((0.15, 0.15, 0.15), (0.45, 0.50, 0.54)),
}


def _paint(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Blend `colour` (H, W, 3) over the image by alpha (H, W)."""
    return image * (1 - alpha[..., None]) + colour * alpha[..., None]


def _add_structure(
    image: np.ndarray, layer: Layer, ground: np.ndarray, fields: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """An anatomy: the ground's colour changed, its texture, and for a polyp the shading of a dome with a dark foot."""
    factor, added = _STRUCTURES[layer.name]
    strength = rng.uniform(0.85, 1.2)
    colour = ground * np.asarray(factor) ** strength + np.asarray(added) * strength + rng.normal(0, 0.02, 3)
    value = np.clip(colour, 0.02, 0.95) + 0.08 * texture(layer, *fields)[..., None]
    if layer.name == "polyp":
        light = float(rng.uniform(0, 2 * np.pi))
        value = value + (0.07 * layer.rho * np.cos(layer.theta - light) - 0.14 * np.clip(layer.rho - 0.75, 0, 1))[..., None]
    return _paint(image, coverage(layer), value)


def _add_finding(image: np.ndarray, layer: Layer, rng: np.random.Generator) -> np.ndarray:
    """A finding relative to the median colour of its place; where that is too bright to add to, the sign turns."""
    look = findings.LOOKS[layer.name]
    base = np.median(image[layer.mask], axis=0)
    tint = look.contrast * rng.uniform(0.85, 1.2) * np.asarray(look.tint) * 0.85
    if np.mean(np.clip(base + tint, 0.02, 0.98) - base) * np.sign(tint.mean()) < 0.55 * abs(tint.mean()):
        tint = -tint
    value = base + tint * findings.pattern(layer.name, layer.rho, layer.theta)[..., None]
    return _paint(image, coverage(layer), value)


def _shine(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Specular highlights: small saturated spots of the light source on the wet surface."""
    spots = np.zeros(scene.view.size, np.float32)
    for _ in range(int(rng.integers(2, 8))):
        at = (int(rng.integers(0, spots.shape[1])), int(rng.integers(0, spots.shape[0])))
        axes = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        cv2.ellipse(spots, at, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, thickness=-1)
    return _paint(image, cv2.GaussianBlur(spots, (0, 0), 0.5), np.ones_like(image))


def _light(scene: Scene, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Vignetting (H, W): brightness falls off from a point near the middle."""
    height, width = scene.view.size
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    u0, v0 = rng.uniform(-0.3, 0.3, 2)
    return 1 - strength * ((u - u0) ** 2 + (v - v0) ** 2) / 2


def render_colour(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Colour image (H, W, 3) float in 0..1."""
    name, size = scene.modality.name, scene.view.size
    first, second = (np.asarray(end) for end in _GROUNDS[name])
    ground = first + (second - first) * rng.random() + rng.normal(0, 0.02, 3)
    fine, coarse, slow = (smooth_noise(rng, size, wavelength) for wavelength in (2.0, 6.0, 26.0))
    image = ground + 0.02 * fine[..., None] + 0.02 * coarse[..., None] + 0.035 * slow[..., None] * np.array([1.0, 0.8, 0.7])
    if name == "endoscopy":
        x, y = scene.view.body_grid()
        folds = np.cos(7 * np.hypot(x + 0.35, y + 0.35) + 0.5 * slow)
        image = image + 0.05 * folds[..., None]
    for layer in scene.layers:
        if layer.is_finding:
            image = _add_finding(image, layer, rng)
        else:
            image = _add_structure(image, layer, ground, (fine, coarse), rng)
    if name == "dermoscopy":
        image = draw_hair(image, rng)
    if name == "endoscopy":
        image = _shine(image, scene, rng)
    fall = {"fundus": 0.30, "dermoscopy": 0.15, "endoscopy": 0.40}[name]
    image = image * _light(scene, rng, fall * rng.uniform(0.5, 1.0))[..., None] * rng.uniform(0.9, 1.1)
    image = image + rng.normal(0, 0.012, image.shape)
    return np.clip(image * scene.field[..., None], 0, 1)
