"""Training-time changes of image and masks together (albumentations behind one class, so that the library can be exchanged)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medplib.data.encode import Loaded


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each change; zero switches it off.

    Args:
        rotate: degrees either way.
        scale: relative size change either way, 0.1 = 0.9 to 1.1.
        translate: shift as a fraction of the side, either way.
        flip: probability of a left-right mirror; leave at zero where names have sides.
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


class Augmenter:
    """Applies one random change to the first image of a sample and all its masks. Targets that leave the image make it give up."""

    def __init__(self, config: AugmentConfig) -> None:
        import albumentations as A

        c = config
        steps: list = []
        if c.flip:
            steps.append(A.HorizontalFlip(p=c.flip))
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
        self._apply = A.Compose(steps) if steps else None

    def __call__(self, loaded: Loaded, rng: np.random.Generator) -> Loaded:
        """The changed sample; the original when nothing is configured or a present target or region would vanish."""
        if self._apply is None or len(loaded.images) != 1:
            return loaded
        present = [m for masks in (*loaded.target_masks, *loaded.region_masks) for m in masks if m is not None]
        self._apply.set_random_seed(int(rng.integers(2**31)))
        if present:
            out = self._apply(image=loaded.images[0], masks=[m.astype(np.uint8) for m in present])
            changed = [np.asarray(m, bool) for m in out["masks"]]
        else:
            out, changed = self._apply(image=loaded.images[0]), []
        if any(new.sum() < 0.3 * old.sum() for new, old in zip(changed, present, strict=True)):
            return loaded
        fresh = iter(changed)

        def renewed(groups: tuple) -> tuple:
            return tuple(tuple(None if m is None else next(fresh) for m in masks) for masks in groups)

        return replace(loaded, images=(out["image"],), target_masks=renewed(loaded.target_masks), region_masks=renewed(loaded.region_masks))
