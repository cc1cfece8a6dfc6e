"""Outlines of a target and a prediction on their image, for a person to judge; colours safe for colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

import cv2
import numpy as np

from medplib.errors import InputError

TARGET_RGB = (86, 180, 233)
PREDICTION_RGB = (230, 159, 0)


def draw_overlay(image: np.ndarray, *, target_HW: np.ndarray | None, prediction_HW: np.ndarray | None) -> np.ndarray:
    """Outline the target (blue) and the prediction (orange, on top) on a copy of the image.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        target_HW: bool mask or None.
        prediction_HW: bool mask or None.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: the image is not uint8 grey or RGB, or a mask has another size.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(where="overlay", expected="a uint8 image (H, W) or (H, W, 3)", found=f"{image.dtype} {image.shape}")
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    # In proportion to the image, so that the line survives the reduction to report size.
    width = max(1, round(max(image.shape[:2]) / 200))
    for mask, colour in ((target_HW, TARGET_RGB), (prediction_HW, PREDICTION_RGB)):
        if mask is None:
            continue
        if mask.shape != image.shape[:2]:
            raise InputError(where="overlay", expected=f"a mask of the image's size {image.shape[:2]}", found=str(mask.shape))
        contours, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, colour, width)
    return canvas
