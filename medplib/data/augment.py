"""Training-time changes of image and masks together (albumentations behind one class, so that the library can be exchanged)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from medplib.data.encode import Loaded
from medplib.imaging.grey import from_plane, grey_plane


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each change; zero switches it off.

    Args:
        rotate: degrees either way.
        scale: relative size change either way, 0.1 = 0.9 to 1.1.
        translate: shift as a fraction of the side, either way.
        flip: probability of a left-right mirror; conversations that speak of left or right are never mirrored. Leave at zero where sides
            are meant without being named.
        flip_vertical: probability of an upside-down mirror.
        brightness, contrast: relative change either way.
        gamma: exponent change either way, 0.2 = 0.8 to 1.2.
        colour: shift of hue and saturation, relative.
        noise: standard deviation of added noise as a fraction of the range.
        blur: probability of a light blur.
    """

    rotate: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    flip: float = 0.0
    flip_vertical: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    colour: float = 0.0
    noise: float = 0.0
    blur: float = 0.0


_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class Augmenter:
    """Applies one random change to the first image of a sample and all its masks. Targets that leave the image make it give up."""

    def __init__(self, config: AugmentConfig) -> None:
        import albumentations as A

        c = config
        steps: list = []
        self._moves = bool(c.flip_vertical or c.rotate or c.scale or c.translate)  # or else masks stay as they are
        if c.flip_vertical:
            steps.append(A.VerticalFlip(p=c.flip_vertical))
        if c.rotate or c.scale or c.translate:
            steps.append(
                A.Affine(
                    rotate=(-c.rotate, c.rotate),
                    scale=(1 - c.scale, 1 + c.scale),
                    translate_percent=(-c.translate, c.translate),
                    p=0.9,
                )
            )
        if c.brightness or c.contrast:
            steps.append(A.RandomBrightnessContrast(c.brightness, c.contrast, p=0.8))
        if c.gamma:
            steps.append(A.RandomGamma((100 * (1 - c.gamma), 100 * (1 + c.gamma)), p=0.5))
        if c.colour:
            steps.append(A.HueSaturationValue(int(20 * c.colour), int(40 * c.colour), 0, p=0.5))
        if c.noise:
            steps.append(A.GaussNoise(std_range=(0.0, c.noise), p=0.5))
        if c.blur:
            steps.append(A.Blur(3, p=c.blur))
        self._apply, self._flip = A.Compose(steps) if steps else None, c.flip
        self._by_plane = not (c.colour or c.noise)  # the channels of a grey image stay equal, so that one is enough

    def __call__(self, loaded: Loaded, rng: np.random.Generator) -> Loaded:
        """The changed sample; the original when nothing is configured or a present target or region would vanish."""
        if len(loaded.images) != 1:
            return loaded
        if self._flip and rng.random() < self._flip and not _speaks_of_sides(loaded):
            loaded = _mirrored(loaded)
        if self._apply is None:
            return loaded
        self._apply.set_random_seed(int(rng.integers(2**31)))
        plane = grey_plane(loaded.images[0]) if self._by_plane else None
        image = loaded.images[0] if plane is None else plane
        present = [m for masks in (*loaded.target_masks, *loaded.region_masks) for m in masks if m is not None]
        if not (present and self._moves):
            return replace(loaded, images=(_image(self._apply(image=image)["image"]),))
        out = self._apply(image=image, masks=[m.astype(np.uint8) for m in present])
        changed = [np.asarray(m, bool) for m in out["masks"]]
        if any(new.sum() < 0.3 * old.sum() for new, old in zip(changed, present, strict=True)):
            return loaded
        return _with_masks(replace(loaded, images=(_image(out["image"]),)), changed)


def _image(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) from what was changed, a plane (H, W) or an image."""
    return from_plane(pixels) if pixels.ndim == 2 else pixels


def _with_masks(loaded: Loaded, present: list[np.ndarray]) -> Loaded:
    """The sample with its present target masks and then its region masks replaced, in order."""
    fresh = iter(present)

    def renewed(groups: tuple) -> tuple:
        return tuple(tuple(None if m is None else next(fresh) for m in masks) for masks in groups)

    return replace(loaded, target_masks=renewed(loaded.target_masks), region_masks=renewed(loaded.region_masks))


def _speaks_of_sides(loaded: Loaded) -> bool:
    texts = [turn.text for record in loaded.records for turn in record.turns]
    texts += [target.name for record in loaded.records for target in record.targets]
    return any(_SIDES.search(text) for text in texts)


def _mirrored(loaded: Loaded) -> Loaded:
    """Left and right exchanged, in the image and in all masks."""
    masks = [m[:, ::-1] for group in (*loaded.target_masks, *loaded.region_masks) for m in group if m is not None]
    image = loaded.images[0][:, ::-1]
    plane = grey_plane(image)
    return _with_masks(replace(loaded, images=(_image(np.ascontiguousarray(image) if plane is None else plane),)), masks)
