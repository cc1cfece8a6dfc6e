"""Unlabelled distractors: tubes, wires, gas bubbles, burnt-in marks and hair. None resembles a structure of the catalogue."""

from __future__ import annotations

import cv2
import numpy as np

from medplib.data.phantom.scene import Scene

LETTERED_SHARE = 0.35


def _curve(size: tuple[int, int], rng: np.random.Generator, bend: float) -> np.ndarray:
    """A random curve across the image as (N, 1, 2) int32 points with four fractional bits."""
    height, width = size
    start, end = rng.uniform(-0.1, 1.1, 2) * [width, height], rng.uniform(-0.1, 1.1, 2) * [width, height]
    middle = (start + end) / 2 + rng.normal(0, bend, 2) * [width, height]
    t = np.linspace(0, 1, 24)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)


def _burn_letters(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Lines of something like letters near a corner, in place; as a device burns them in, whatever lies there: small or large, grey or
    white, over the body or beside it.
    """
    height, width = canvas.shape
    letters = (rng.random((6 * int(rng.integers(1, 3)) - 1, 18)) < 0.5).astype(np.float32)
    letters[:, 3::4] = 0
    letters[5::6] = 0
    scale = float(rng.uniform(1.0, 2.2))
    letters = cv2.resize(letters, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    tall, wide = (min(a, b) for a, b in zip(letters.shape, canvas.shape, strict=True))
    inset = np.abs(rng.integers(0, 2, 2) - rng.uniform(0, 0.12, 2))  # of the free rows and columns
    top, left = (inset * (height - tall, width - wide)).astype(int)
    patch = canvas[top : top + tall, left : left + wide]
    np.maximum(patch, float(rng.uniform(0.7, 1.0)) * letters[:tall, :wide], out=patch)


def draw_marks(canvas: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The grey canvas (H, W) with a thin tube, some bubbles and letters near a corner, each in a part of the images."""
    canvas = np.ascontiguousarray(canvas, dtype=np.float32)
    height, width = canvas.shape
    if rng.random() < 0.35:
        value = float(rng.choice([0.05, 0.85, 0.95]))
        cv2.polylines(canvas, [_curve(canvas.shape, rng, 0.2)], isClosed=False, color=value, thickness=1, lineType=cv2.LINE_AA, shift=4)
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(2, 6))):
            at = (int(rng.integers(0, width)), int(rng.integers(0, height)))
            cv2.circle(canvas, at, int(rng.integers(1, 3)), float(rng.choice([0.04, 0.9])), thickness=-1)
    if rng.random() < LETTERED_SHARE:
        _burn_letters(canvas, rng)
    return canvas


def draw_hair(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The colour image (H, W, 3) in 0..1 with dark hairs across it."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    tone = rng.uniform(0.08, 0.25)
    for _ in range(int(rng.integers(0, 9))):
        colour = (tone, tone * 0.8, tone * 0.7)
        cv2.polylines(image, [_curve(image.shape[:2], rng, 0.15)], isClosed=False, color=colour, thickness=1, lineType=cv2.LINE_AA, shift=4)
    return image
