"""Branching vessels of the retina, skin and mucosa, grown as polylines in body coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from medplib.data.phantom.shapes import View


@dataclass(frozen=True)
class Branch:
    """A polyline (N, 2) in body units and its width in body units."""

    points: np.ndarray
    width: float


def _walk(rng: np.random.Generator, start: np.ndarray, heading: float, length: float, bend: float) -> np.ndarray:
    """A smooth random path (N, 2) of the given length; `bend` is the mean curvature in rad per unit."""
    steps = max(4, int(length / 0.06))
    turns = bend * length / steps + rng.normal(0, 0.09, steps)
    headings = heading + np.cumsum(turns)
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


def grow(rng: np.random.Generator, root: tuple[float, float], towards: float, fan: bool) -> list[Branch]:
    """A tree from `root`. With `fan` four arcades leave on both sides and bend towards the direction `towards` (rad), as in the eye;
    else two or three trunks run across the view in that direction.
    """
    branches: list[Branch] = []
    if fan:
        trunks = [(towards + side * rng.uniform(0.8, 1.2) + back * np.pi * 0.5 * side, -side * 0.75) for side in (-1, 1) for back in (0, 1)]
        starts = [np.asarray(root)] * len(trunks)
    else:
        trunks = [(towards + rng.uniform(-0.35, 0.35), rng.uniform(-0.4, 0.4)) for _ in range(int(rng.integers(2, 4)))]
        across = np.array([-np.sin(towards), np.cos(towards)])
        starts = [np.asarray(root) + across * (i - (len(trunks) - 1) / 2) * rng.uniform(0.5, 0.8) for i in range(len(trunks))]
    for (heading, bend), start in zip(trunks, starts, strict=True):
        path = _walk(rng, start, heading, rng.uniform(1.3, 1.9), bend)
        branches.append(Branch(path, rng.uniform(0.055, 0.075)))
        for _ in range(int(rng.integers(2, 4))):
            at = int(rng.integers(len(path) // 4, len(path) - 1))
            along = np.arctan2(*(path[at + 1] - path[at])[::-1])
            side = rng.choice([-1.0, 1.0])
            twig = _walk(rng, path[at], along + side * rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.9), -side * 0.4)
            branches.append(Branch(twig, rng.uniform(0.035, 0.05)))
    return branches


def rasterise(branches: list[Branch], view: View) -> np.ndarray:
    """Mask (H, W) bool of the tree; no branch is thinner than two pixels."""
    canvas = np.zeros(view.size, np.uint8)
    for branch in branches:
        points = np.round(view.to_pixels(branch.points) * 16).astype(np.int32)  # four fractional bits
        width = max(2, round(branch.width * view.pixels_per_unit))
        cv2.polylines(canvas, [points.reshape(-1, 1, 2)], isClosed=False, color=1, thickness=width, shift=4)
    return canvas.astype(bool)
