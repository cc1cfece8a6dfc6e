"""Deformable outlines in body coordinates, and the view that carries them to pixels.

Body coordinates: x to the right of the image (the patient's left), y down; the body fills about -1..1. Masks are decided in these
coordinates at every pixel centre, so they are exact at any scale and rotation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

TABLE = 256  # directions at which the radius of an outline is stored
_ANGLES = np.linspace(-np.pi, np.pi, TABLE, endpoint=False)


@dataclass(frozen=True)
class View:
    """Rotation (rad), scale and shift of the body in an image of `size` (H, W). One unit is half the geometric mean of the sides,
    so the share of the image that a structure covers does not depend on the aspect ratio.
    """

    size: tuple[int, int]
    angle: float
    scale: float
    shift: tuple[float, float]

    @property
    def pixels_per_unit(self) -> float:
        """Pixels per body unit."""
        return self.scale * float(np.sqrt(self.size[0] * self.size[1])) / 2

    def body_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """X and y in body coordinates of every pixel centre, each (H, W) float32."""
        height, width = self.size
        unit = np.sqrt(height * width) / 2
        u = ((np.arange(width) + 0.5 - width / 2) / unit - self.shift[0]) / self.scale
        v = ((np.arange(height) + 0.5 - height / 2) / unit - self.shift[1]) / self.scale
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x = cos * u[None, :] + sin * v[:, None]
        y = -sin * u[None, :] + cos * v[:, None]
        return x.astype(np.float32), y.astype(np.float32)

    def to_pixels(self, points_N2: np.ndarray) -> np.ndarray:
        """Body points (N, 2) to pixel coordinates (x, y), pixel centres at integers."""
        height, width = self.size
        unit = np.sqrt(height * width) / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u = cos * points_N2[:, 0] - sin * points_N2[:, 1]
        v = sin * points_N2[:, 0] + cos * points_N2[:, 1]
        uv = np.stack([u, v], axis=1) * self.scale + np.asarray(self.shift)
        return uv * unit + np.array([width / 2 - 0.5, height / 2 - 0.5])

    def to_body(self, x_pixel: float, y_pixel: float) -> tuple[float, float]:
        """A pixel position to body coordinates."""
        height, width = self.size
        unit = np.sqrt(height * width) / 2
        u = ((x_pixel + 0.5 - width / 2) / unit - self.shift[0]) / self.scale
        v = ((y_pixel + 0.5 - height / 2) / unit - self.shift[1]) / self.scale
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return float(cos * u + sin * v), float(-sin * u + cos * v)


@dataclass(frozen=True)
class Outline:
    """A star-shaped closed curve: `radius` (TABLE,) in body units over the direction, seen from `centre` in a frame turned by `angle`."""

    centre: tuple[float, float]
    angle: float
    radius: np.ndarray

    @property
    def mean_radius(self) -> float:
        """Radius of the disc of equal area."""
        return float(np.sqrt(np.mean(self.radius**2)))

    def polar(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative radius (1 on the outline, below 1 inside) and direction (rad, in the frame of the shape) of body points."""
        dx, dy = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        theta = np.arctan2(dy, dx) - np.float32(self.angle)
        position = (theta + np.float32(np.pi)) * np.float32(TABLE / (2 * np.pi))
        low = np.floor(position)
        fraction = position - low
        index = low.astype(np.int32)
        table = self.radius.astype(np.float32)
        radius = table.take(index, mode="wrap") * (1 - fraction) + table.take(index + 1, mode="wrap") * fraction
        return np.hypot(dx, dy) / radius, theta

    def scaled(self, factor: float) -> Outline:
        """The same outline, larger or smaller about its centre."""
        return replace(self, radius=self.radius * factor)

    def moved(self, dx: float, dy: float) -> Outline:
        """The same outline elsewhere."""
        return replace(self, centre=(self.centre[0] + dx, self.centre[1] + dy))


def ellipse(a: float, b: float, power: float = 2.0) -> np.ndarray:
    """Radius table (TABLE,) of a superellipse with half axes a, b (power 2: an ellipse; larger: towards a rectangle)."""
    return (np.abs(np.cos(_ANGLES) / a) ** power + np.abs(np.sin(_ANGLES) / b) ** power) ** (-1 / power)


def notched(radius: np.ndarray, direction: float, depth: float, width: float) -> np.ndarray:
    """The table with a dent of relative `depth` towards `direction` (rad), `width` its standard deviation (rad)."""
    away = np.angle(np.exp(1j * (_ANGLES - direction)))
    return radius * (1 - depth * np.exp(-0.5 * (away / width) ** 2))


def wavy(radius: np.ndarray, rng: np.random.Generator, amplitude: float, orders: tuple[int, ...]) -> np.ndarray:
    """The table with a random wave of each order; `amplitude` is the relative height at the lowest order, falling with the order."""
    wave = np.zeros(TABLE)
    for order in orders:
        height = amplitude * (orders[0] / order) ** 0.5 * rng.uniform(0.5, 1.0)
        wave += height * np.cos(order * _ANGLES + rng.uniform(0, 2 * np.pi))
    return radius * (1 + wave)


def polygon(rng: np.random.Generator, corners: int, inner: float) -> np.ndarray:
    """Radius table of an angular star: corners at radius about 1, straight edges to waists at radius about `inner`."""
    angles = np.sort(rng.uniform(-0.25, 0.25, 2 * corners) + np.arange(2 * corners)) * np.pi / corners - np.pi
    radii = np.where(np.arange(2 * corners) % 2 == 0, 1.0, inner) * rng.uniform(0.9, 1.1, 2 * corners)
    points = radii * np.exp(1j * angles)
    table = np.zeros(TABLE)
    for first, second in zip(points, np.roll(points, -1), strict=True):
        # where the ray of each direction meets the edge: r = cross(first, edge) / cross(ray, edge)
        edge = second - first
        ray = np.exp(1j * _ANGLES)
        span = np.angle(ray / first) / np.angle(second / first)
        hit = (span >= 0) & (span <= 1)
        cross = np.imag(np.conj(ray) * edge)
        table[hit] = np.maximum(table[hit], np.imag(np.conj(first) * edge) / cross[hit])
    return table
