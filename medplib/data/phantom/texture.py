"""Inner textures of anatomies and random fields shared by all appearances."""

from __future__ import annotations

import cv2
import numpy as np

from medplib.data.phantom.scene import Layer

OUTER_LEVEL = {"cortex": 0.9, "wall": 0.85, "lumen": 0.5, "trabeculae": 0.65, "chambers": 0.35, "stripe": -0.25}
"""Level of a texture along the outline; 0 for those not named."""


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], wavelength: float) -> np.ndarray:
    """A random field (H, W) float32 of zero mean and about unit deviation that varies over `wavelength` pixels."""
    height, width = size
    small = rng.standard_normal((int(height / wavelength) + 3, int(width / wavelength) + 3)).astype(np.float32)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * 1.15


def _ramp(value: np.ndarray, at: float, width: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh((value - at) / width)


def texture(layer: Layer, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Texture (H, W) in about -1..1 of a layer; `fine` and `coarse` are random fields of unit deviation on the pixel grid."""
    rho, theta = layer.rho, layer.theta
    across = rho * np.sin(theta)
    along = rho * np.cos(theta)
    match layer.texture:
        case "grain":
            return 0.55 * fine
        case "spots":
            return 0.25 * fine - 0.9 * _ramp(coarse, 0.95, 0.15)
        case "streaks":
            return 0.55 * np.cos(8 * theta + 5 * rho) * np.clip(rho, 0, 1) + 0.3 * fine
        case "cortex":
            return 0.9 * _ramp(rho, 0.66, 0.06) - 0.9 * (1 - _ramp(rho, 0.36, 0.06)) + 0.15 * fine
        case "chambers":
            return 0.35 - 1.2 * _ramp(np.abs(along), 0.14, 0.04) * (1 - _ramp(rho, 0.68, 0.06))
        case "lumen":
            return 0.5 - 1.4 * (1 - _ramp(rho, 0.58, 0.06))
        case "wall":
            return -0.35 + 1.2 * _ramp(rho, 0.80, 0.05) + 0.45 * np.cos(9 * along) * (1 - _ramp(rho, 0.80, 0.05))
        case "stripe":
            return -0.25 + 1.2 * (1 - _ramp(np.abs(across), 0.20, 0.05))
        case "trabeculae":
            return 0.9 * _ramp(rho, 0.80, 0.05) - 0.25 + 0.5 * fine
        case "network":
            return 0.5 * np.cos(11 * along) * np.cos(11 * across) + 0.5 * coarse
        case "cup":
            return 0.9 * (1 - _ramp(rho, 0.48, 0.07)) - 0.2
        case "metal":
            return np.clip(1.0 - 9.0 * np.abs(across), -1, 1)
        case _:
            return np.zeros_like(rho)


def coverage(layer: Layer) -> np.ndarray:
    """Anti-aliased share of each pixel (H, W) that the whole outline covers; above one half exactly inside the outline."""
    if layer.name == "vessel tree":
        return cv2.GaussianBlur(layer.mask.astype(np.float32), (0, 0), 0.6)
    return np.clip((1 - layer.rho) * layer.edge + 0.5, 0, 1)
