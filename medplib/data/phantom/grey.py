"""Appearance of the radiological group: CT, MR, X-ray, ultrasound and PET, each with its own mapping to grey and its own noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from medplib.data.phantom import findings
from medplib.data.phantom.anatomy import ANATOMY_TEXTURES
from medplib.data.phantom.catalog import TISSUES, Tissue
from medplib.data.phantom.marks import draw_marks
from medplib.data.phantom.scene import Layer, Scene
from medplib.data.phantom.texture import OUTER_LEVEL, coverage, smooth_noise, texture

CONTRAST = 0.13
"""Least difference of an anatomy from the body around it, in the range 0..1, before noise."""

_DULLNESS = {"PET": 1.25, "ultrasound": 1.15}  # findings are drawn stronger where blur or speckle weakens them


@dataclass(frozen=True)
class Palette:
    """Grey values of one case: `body`, one value per tissue, strength of textures, contrast of each kind of finding."""

    body: float
    tissue: dict[str, float]
    texture: float
    finding: dict[str, float]


def _grey_of(modality: str, tissue: Tissue, water_weight: float) -> float:
    """The mapping of a modality from latent properties to grey 0..1 (before the per-image jitter)."""
    match modality:
        case "CT" | "X-ray":
            return 0.10 + 0.72 * tissue.density
        case "MR":
            return 0.08 + 0.80 * (water_weight * tissue.water + (1 - water_weight) * tissue.fat)
        case "PET":
            return 0.08 + 0.80 * tissue.uptake
        case _:
            return 0.12 + 0.75 * tissue.echo


def _apart(grey: float, body: float, least: float) -> float:
    """`grey` moved away from the body's until they differ by `least`, towards where there is room."""
    if abs(grey - body) >= least:
        return grey
    up = grey >= body if 0.2 < body < 0.75 else body < 0.5
    return body + least if up else body - least


def draw_palette(modality: str, rng: np.random.Generator) -> Palette:
    """Grey values of a case: the modality's mapping, with jitter that makes the ranges of different tissues overlap between images."""
    water_weight = float(rng.uniform(0.15, 0.85))
    body = _grey_of(modality, TISSUES["body"], water_weight) + rng.uniform(-0.07, 0.07)
    strength = float(rng.uniform(0.07, 0.12))
    greys = {}
    for name, tissue in TISSUES.items():
        grey = _grey_of(modality, tissue, water_weight) + rng.normal(0, 0.07)
        least = CONTRAST + rng.uniform(0, 0.06)
        if name in ANATOMY_TEXTURES:  # what meets the body is the outer zone of the texture
            outer = strength * OUTER_LEVEL.get(ANATOMY_TEXTURES[name], 0.0)
            grey = _apart(grey + outer, body, least) - outer
        greys[name] = float(np.clip(grey, 0.03, 0.88))
    contrasts = {}
    for name, look in findings.LOOKS.items():
        sign = -1.0 if modality in look.inverted else 1.0
        contrasts[name] = sign * look.contrast * _DULLNESS.get(modality, 1.0) * float(rng.uniform(0.85, 1.2))
    return Palette(float(body), greys, strength, contrasts)


def _add_finding(canvas: np.ndarray, layer: Layer, strength: float) -> np.ndarray:
    """Replace the host inside the finding by its local median plus the finding's pattern; the sign turns when there is no headroom."""
    base = float(np.median(canvas[layer.mask]))
    if not 0.03 <= base + strength <= 0.97 and abs(np.clip(base + strength, 0.03, 0.97) - base) < abs(
        np.clip(base - strength, 0.03, 0.97) - base
    ):
        strength = -strength
    value = base + strength * findings.pattern(layer.name, layer.rho, layer.theta)
    alpha = coverage(layer)
    return canvas * (1 - alpha) + value * alpha


def _slices(scene: Scene, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Grey (H, W) of a cross-section: every layer hides what lies behind it; a thin line of fat surrounds each anatomy."""
    fine, coarse = smooth_noise(rng, scene.view.size, 2.2), smooth_noise(rng, scene.view.size, 6.0)
    slow = smooth_noise(rng, scene.view.size, 28.0)
    x, y = scene.view.body_grid()
    inside = np.clip((1 - (np.abs(x / 1.0) ** 2.8 + np.abs(y / 1.27) ** 2.8)) * 40 + 0.5, 0, 1)
    canvas = inside * (palette.body + palette.texture * (0.25 * fine + 0.20 * slow)) + (1 - inside) * 0.03
    line = -0.10 if palette.body > 0.3 else 0.08
    for layer in scene.layers:
        if layer.is_finding:
            canvas = _add_finding(canvas, layer, palette.finding[layer.name])
            continue
        alpha = coverage(layer)
        rim = np.clip((1 - layer.rho) * layer.edge + 2.0, 0, 1) - alpha if layer.named else 0.0
        value = palette.tissue[layer.tissue] + palette.texture * texture(layer, fine, coarse)
        canvas = canvas * (1 - alpha) + value * alpha + line * rim
    return canvas


def _projection(scene: Scene, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """Grey (H, W) of an X-ray: attenuation adds up along the ray, so what lies behind shows through."""
    fine, coarse = smooth_noise(rng, scene.view.size, 2.2), smooth_noise(rng, scene.view.size, 6.0)
    x, y = scene.view.body_grid()
    around = np.clip(1 - (np.abs(x / 1.0) ** 2.8 + np.abs(y / 1.27) ** 2.8), 0, 1)
    canvas = 0.05 + (palette.body - 0.05) * around**0.25
    if scene.region == "chest":
        ribs = np.cos(19 * (y + 0.35 * x**2 + 0.1)) * (np.abs(x) < 0.85)
        canvas = canvas + 0.045 * np.clip(ribs - 0.3, 0, 1) * around**0.25
    for layer in scene.layers:
        if layer.is_finding:
            canvas = _add_finding(canvas, layer, palette.finding[layer.name])
            continue
        thickness = coverage(layer) * (0.72 + 0.28 * np.sqrt(np.clip(1 - layer.rho**2, 0, 1)))
        excess = palette.tissue[layer.tissue] - palette.body
        excess = 0.6 * excess if layer.tissue == "bone" else excess
        canvas = canvas + thickness * (excess + 0.8 * palette.texture * texture(layer, fine, coarse))
    return canvas


def _ct(canvas: np.ndarray, fixed: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Window and level jitter, then Poisson noise of the detector."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.5)
    canvas = 0.5 + (canvas - 0.47) * fixed.uniform(0.9, 1.2) + fixed.uniform(-0.06, 0.06)
    quanta = fixed.uniform(250, 900)
    return noise.poisson(np.clip(canvas, 0, 1) * quanta).astype(np.float32) / np.float32(quanta)


def _mr(canvas: np.ndarray, scene: Scene, fixed: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Smooth bias field of the receive coil, then Rician noise (magnitude of a complex signal)."""
    height, width = scene.view.size
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    a, b, c, d = fixed.uniform(-0.16, 0.16, 4)
    canvas = canvas * np.exp(a * u + b * v + c * u * v + d * (u**2 - v**2))
    real, imaginary = noise.normal(0, fixed.uniform(0.015, 0.04), (2, height, width))
    return np.hypot(canvas + real, imaginary)


def _xray(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scatter blur, soft saturation of the film and quantum noise."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.7)
    canvas = 0.5 + 0.5 * np.tanh((canvas - 0.45) * rng.uniform(2.0, 2.6))
    quanta = rng.uniform(400, 1200)
    return rng.poisson(np.clip(canvas, 0, 1) * quanta).astype(np.float32) / np.float32(quanta)


def _ultrasound(canvas: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Rayleigh speckle, loss with depth, shadow under calcifications and brightness under cysts; nothing outside the fan."""
    height, width = scene.view.size
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.7)
    depth = np.linspace(0, 1, height)[:, None]
    for layer in scene.layers:
        if layer.name in ("calcification", "cyst") and layer.is_finding:
            below = np.maximum.accumulate(layer.mask, axis=0) & ~layer.mask
            factor = 0.72 if layer.name == "calcification" else 1.15
            canvas = canvas * (1 + (factor - 1) * cv2.GaussianBlur(below.astype(np.float32), (0, 0), 1.2))
    waves = rng.normal(0, 1, (2, height, width)).astype(np.float32)
    waves = [cv2.GaussianBlur(wave, (0, 0), sigmaX=1.1, sigmaY=0.7) for wave in waves]
    speckle = np.hypot(waves[0], waves[1])
    speckle = speckle / speckle.mean()
    strength = rng.uniform(0.25, 0.45)
    image = canvas * (1 + strength * (speckle - 1)) * (1.1 - rng.uniform(0.1, 0.4) * depth)
    return np.where(scene.field, image, 0.0)


def _pet(canvas: np.ndarray, fixed: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Counting noise, then the blur of the reconstruction, which also correlates the noise."""
    quanta = fixed.uniform(35, 90)
    noisy = noise.poisson(np.clip(canvas, 0, 1.2) * quanta) / quanta
    return cv2.GaussianBlur(noisy, (0, 0), fixed.uniform(1.1, 1.7)) * fixed.uniform(0.9, 1.15)


def render_grey(scene: Scene, palette: Palette, fixed: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Grey image (H, W) float in 0..1.

    Args:
        scene: what to show.
        palette: grey values of the case.
        fixed: textures, marks and settings of the device; the slices of a volume give it the same state.
        noise: noise of this image.
    """
    modality = scene.modality.name
    canvas = (_projection if modality == "X-ray" else _slices)(scene, palette, fixed)
    canvas = draw_marks(canvas, scene, fixed)
    match modality:
        case "CT":
            image = _ct(canvas, fixed, noise)
        case "MR":
            image = _mr(canvas, scene, fixed, noise)
        case "X-ray":
            image = _xray(canvas, noise)
        case "PET":
            image = _pet(canvas, fixed, noise)
        case _:
            image = _ultrasound(canvas, scene, noise)
    return np.clip(image, 0, 1)
