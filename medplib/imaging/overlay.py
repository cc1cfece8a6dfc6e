"""Pictures for people: masks drawn on their image, contact sheets of slices, PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medplib.errors import InputError
from medplib.imaging.files import check_output_file
from medplib.paths import atomic_path

# Okabe and Ito's palette without black: distinguishable with the common forms of colour blindness
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_OPACITY = 0.4
_FONT_SIZE = 13
_LINE = 18
"""Height of one line of text in pixels."""

_MIN_LEGEND_WIDTH = 160
_GAP = 6
_BACKGROUND, _TEXT = (0, 0, 0), (255, 255, 255)


def colour_of(index: int) -> tuple[int, int, int]:
    """RGB of the mask at `index`: the palette, then its lighter and its darker half, then again from the start."""
    base = np.array(PALETTE[index % len(PALETTE)], np.float64)
    target, share = ((0.0, 0.0), (255.0, 0.5), (0.0, 0.5))[(index // len(PALETTE)) % 3]
    red, green, blue = (int(value) for value in np.round(base * (1 - share) + target * share))
    return red, green, blue


def overlay_masks(image: np.ndarray, masks: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Draw named masks over an image: half-transparent fill, opaque contour, and a legend below.

    Args:
        image: (H, W, 3) uint8.
        masks: (name, (H, W) bool) each; a mask without any pixel is named "(none)" in the legend and drawn nowhere.

    Returns:
        (H + legend, W or wider, 3) uint8: the image stays at the top left in its own pixels; a narrow image gains black at its right so
        that the legend can be read. Without masks the image itself, copied.
    """
    blended = image.astype(np.float32)
    for index, (name, mask) in enumerate(masks):
        if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
            found = f"{mask.dtype} of shape {mask.shape}"
            raise InputError(where=f"mask '{name}'", expected=f"a bool mask of shape {image.shape[:2]}", found=found)
        blended[mask] = (1 - _OPACITY) * blended[mask] + _OPACITY * np.array(colour_of(index), np.float32)
    drawn = np.round(blended).astype(np.uint8)
    for index, (_, mask) in enumerate(masks):  # after all fills, so that no fill dulls the contour of another mask
        drawn[_contour(mask)] = colour_of(index)
    if not masks:
        return drawn
    names = [name if mask.any() else f"{name} (none)" for name, mask in masks]
    return _stack([drawn, _legend(names, max(image.shape[1], _MIN_LEGEND_WIDTH))])


def contact_sheet(images: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> np.ndarray:
    """Images side by side in rows, each under its title; columns are equally wide, a row is as high as its highest image.

    Args:
        images: (H, W, 3) uint8 each, of any sizes; at least one.
        titles: one per image; cut to the width of the cell.
        columns: images per row, at least one.

    Returns:
        (height of all rows, width of all columns, 3) uint8, black between the images.
    """
    if not images or len(images) != len(titles) or columns < 1:
        found = f"{len(images)} images, {len(titles)} titles, {columns} columns"
        raise InputError(where="contact sheet", expected="at least one image, as many titles, and at least one column", found=found)
    width = max(image.shape[1] for image in images)
    columns = min(columns, len(images))
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [_LINE + max(images[index].shape[0] for index in row) for row in rows]
    sheet = np.zeros((sum(heights) + _GAP * (len(rows) - 1), columns * (width + _GAP) - _GAP, 3), np.uint8)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        for x, index in zip(range(0, sheet.shape[1], width + _GAP), row, strict=False):
            image = images[index]
            sheet[y : y + _LINE, x : x + width] = _text_line(titles[index], width)
            sheet[y + _LINE : y + _LINE + image.shape[0], x : x + image.shape[1]] = image
        y += height + _GAP
    return sheet


def write_png(array: np.ndarray, path: Path) -> None:
    """Write a picture as PNG.

    Args:
        array: (H, W, 3) or (H, W) uint8.
        path: .png; appears whole or not at all.
    """
    check_output_file(path, (".png",))
    is_picture = array.dtype == np.uint8 and array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    if not is_picture:
        raise InputError(where=path, expected="uint8 pixels (H, W) or (H, W, 3)", found=f"{array.dtype} of shape {array.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")


def _contour(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) next to its outside; thicker in large images. The border of the image is no edge of the mask."""
    thickness = max(1, round(min(mask.shape) / 400))
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel, iterations=thickness, borderType=cv2.BORDER_REPLICATE)
    return mask & (inner == 0)


@dataclass(frozen=True)
class _Entry:
    """One name of the legend: colour index, text, and its place in pixels."""

    index: int
    text: str
    x: int
    y: int


def _legend(names: Sequence[str], width: int) -> np.ndarray:
    """(lines, width, 3) uint8: a coloured square before each name, wrapped to `width`."""
    font = ImageFont.load_default(_FONT_SIZE)
    entries: list[_Entry] = []
    x, y = _GAP, 0
    for index, name in enumerate(names):
        text = _shortened(name, font, width - _LINE - 2 * _GAP)
        needed = _LINE + round(font.getlength(text)) + 2 * _GAP
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + _LINE
        entries.append(_Entry(index, text, x, y))
        x += needed
    strip = Image.new("RGB", (width, y + _LINE + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for entry in entries:
        top = entry.y + _GAP // 2
        draw.rectangle((entry.x, top + 3, entry.x + 11, top + 14), fill=colour_of(entry.index))
        draw.text((entry.x + _LINE, top), entry.text, fill=_TEXT, font=font)
    return np.asarray(strip)


def _text_line(text: str, width: int) -> np.ndarray:
    font = ImageFont.load_default(_FONT_SIZE)
    line = Image.new("RGB", (width, _LINE), _BACKGROUND)
    ImageDraw.Draw(line).text((2, 1), _shortened(text, font, width - 4), fill=_TEXT, font=font)
    return np.asarray(line)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) below one another, left-aligned on black."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0))) for part in parts])
