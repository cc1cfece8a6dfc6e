"""PNG files that hold 8-bit grey or RGB and nothing that changes how they look: most of any data set, and fast to read.

OpenCV decodes them in four fifths of Pillow's time. What is special or damaged in any way is left to Pillow, see `raster`.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEUTRAL = frozenset((b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs", b"tIME"))
"""Chunks that no reader of this package heeds. Texts are not among them: they may hold an orientation."""
_GREY, _RGB = 0, 2
_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")


def read_plain_png(path: Path) -> np.ndarray | None:
    """Decode a PNG file of 8-bit grey or RGB.

    Args:
        path: any file.

    Returns:
        (H, W) or (H, W, 3) uint8, as Pillow would; None for every other file: another format, more bits, a palette, transparency,
        interlaced, animated, with texts, larger than `PIL.Image.MAX_IMAGE_PIXELS`, damaged, or not to be read at all.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                return None
            data = _SIGNATURE + file.read()
    except OSError:
        return None
    colour = _colour_type(data)
    if colour is None:
        return None
    flag = cv2.IMREAD_GRAYSCALE if colour == _GREY else cv2.IMREAD_COLOR_RGB
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)  # None where it cannot


def _colour_type(data: bytes) -> int | None:
    """The colour type of a whole PNG file whose chunks are all neutral and undamaged; None for another."""
    at, end, colour, kind = len(_SIGNATURE), len(data), None, b""
    while at + 12 <= end:
        length, kind = _CHUNK.unpack_from(data, at)
        stop = at + 8 + length
        if kind not in _NEUTRAL or stop + 4 > end or zlib.crc32(memoryview(data)[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4]):
            return None
        if colour is None:
            if kind != b"IHDR" or length != _HEADER.size:
                return None
            width, height, bits, colour, *ways = _HEADER.unpack_from(data, at + 8)
            limit = Image.MAX_IMAGE_PIXELS
            if bits != 8 or colour not in (_GREY, _RGB) or any(ways) or (limit is not None and width * height > limit):
                return None
        at = stop + 4
    return colour if kind == b"IEND" and at == end else None
