"""PNG, JPEG, TIFF and BMP -> RGB uint8, decoded by Pillow (plain PNG by OpenCV) and recognised by content, not by suffix.

Rules: EXIF orientation is applied. 16-bit, 32-bit and float grey are windowed by the rule of `intensity`; 16-bit colour keeps its
high byte, because stretching channels would change the colours. Transparency is composited over black, the ground of most medical
pictures. CMYK becomes RGB without colour management; embedded colour profiles are not applied. Files with several frames are refused.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from medplib.errors import InputError
from medplib.imaging.files import check_input_file
from medplib.imaging.grey import from_plane
from medplib.imaging.intensity import apply_window, find_window
from medplib.imaging.png import read_plain_png

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
EXPECTED = "a PNG, JPEG, TIFF or BMP picture"
WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow modes of grey with more than 8 bits."""

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error, MemoryError)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags; photometric 0 = the lowest value is white; sample format 1 = unsigned


def read_raster(path: Path) -> np.ndarray:
    """Decode a picture to RGB.

    Args:
        path: a PNG, JPEG, TIFF or BMP file with one frame.

    Returns:
        (H, W, 3) uint8; of a grey picture a view of one plane, see `from_plane`.

    Raises:
        InputError: missing, empty, truncated or corrupt file, another format, several frames, more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`, grey that is not finite, or 16-bit grey with alpha.
    """
    plain = read_plain_png(path)
    if plain is not None:
        return from_plane(plain) if plain.ndim == 2 else plain
    image = open_raster(path)
    if image.mode in WIDE_GREY:
        grey = _wide_grey(image, path)
        return from_plane(apply_window(grey, find_window(grey)))
    if image.mode == "L" and not image.has_transparency_data:
        return from_plane(np.array(image))
    return np.array(_flatten(image))  # a copy: Pillow's own memory is read-only


def open_raster(path: Path) -> Image.Image:
    """The decoded picture in the mode of the file, upright according to EXIF; errors as `read_raster`."""
    check_input_file(path, EXPECTED)
    try:
        with warnings.catch_warnings():
            # a picture above Pillow's limit is refused outright: its warning alone would let it fill the memory
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_layout(image, path)
                image.load()
                return _upright(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"at most {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise InputError(where=path, expected=limit, found="a larger picture", remedy="crop or shrink it first") from None
    except UnidentifiedImageError:
        raise InputError(
            where=path, expected=EXPECTED, found="another kind of content or a damaged header", remedy="export it again"
        ) from None
    except _DECODING_ERRORS as error:
        found = f"a truncated or corrupt file ({error or type(error).__name__})"
        raise InputError(where=path, expected=EXPECTED, found=found, remedy="copy or export it again") from error


def grey_of(image: Image.Image, path: Path) -> np.ndarray:
    """The stored grey values of an opened picture, unwindowed; of colours the largest channel, over black where transparent.

    Returns:
        (H, W) uint8 for 1-bit (0 and 255), 8-bit, palette and colour pictures; otherwise the stored type.
    """
    if image.mode in WIDE_GREY:
        return _wide_grey(image, path)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    return largest_channel(np.asarray(_flatten(image)))


def largest_channel(image_HW3: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W)."""
    red, green, blue = np.moveaxis(image_HW3, 2, 0)
    return np.maximum(np.maximum(red, green), blue)  # a maximum along so short an axis takes twenty times as long


def is_transparent(image: Image.Image) -> bool:
    """Whether some pixel of the opened picture is not opaque."""
    if image.mode in WIDE_GREY or not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _check_layout(image: Image.Image, path: Path) -> None:
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":  # a JPEG of a phone or stereo camera: by its standard the first frame is the picture
        logger.info("%s: using the primary picture of %d in a multi-picture JPEG", path, frames)
    elif frames != 1:
        found = f"{frames} pages or frames"
        raise InputError(where=path, expected="a single picture", found=found, remedy="save the wanted page as its own file")
    if image.tile and image.tile[0][3] == "LA;16B":  # decoded to 8 bit without the window that 16-bit grey gets
        remedy = "save it without the alpha channel"
        raise InputError(where=path, expected="16-bit grey without transparency", found="16-bit grey with alpha", remedy=remedy)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate by EXIF and repair what Pillow leaves open for wide grey TIFF: unsigned 32 bit, and 'lowest value is white'."""
    upright = ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image  # which copies
    if image.format != "TIFF" or image.mode not in WIDE_GREY:
        return upright
    grey = np.asarray(upright)
    if image.mode == "I" and image.tag_v2.get(_BITS) == (32,) and image.tag_v2.get(_SAMPLE_FORMAT, (1,)) == (1,):
        grey = grey.view(np.uint32).astype(np.float32)
    if image.tag_v2.get(_PHOTOMETRIC) == 0:
        grey = 65535 - grey.astype(np.int32) if image.mode.startswith("I;16") else grey.max() + grey.min() - grey
    return Image.fromarray(grey)


def _wide_grey(image: Image.Image, path: Path) -> np.ndarray:
    grey = np.asarray(image)
    if not np.isfinite(grey).all():
        count = int(grey.size - np.isfinite(grey).sum())
        raise InputError(where=path, expected="finite grey values", found=f"{count} NaN or infinite pixels", remedy="replace them first")
    return grey.astype(grey.dtype.newbyteorder("="))


def _flatten(image: Image.Image) -> Image.Image:
    """The RGB picture without transparency, composited over black."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    rgba = image.convert("RGBA")
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, rgba).convert("RGB")
