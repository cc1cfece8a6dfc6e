"""PNG files that hold 8-bit grey or RGB and nothing that changes how they look: most of any data set, and fast to read.

OpenCV decodes them in four fifths of Pillow's time. What is special or damaged in any way is left to Pillow, see `raster`.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN = re.compile(rb"IHDR(pHYs)?(IDAT)+IEND")
"""The chunks of a plain file. Profiles, texts and the like change nothing here, or say how the picture is turned; Pillow knows which."""
_LENGTHS = {b"IHDR": 13, b"pHYs": 9, b"IEND": 0}
_GREY, _RGB = 0, 2
_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")


def read_plain_png(path: Path) -> np.ndarray | None:
    """Decode a PNG file of 8-bit grey or RGB.

    Args:
        path: any file.

    Returns:
        (H, W) or (H, W, 3) uint8, as Pillow would; None for every other file: another format, more bits, a palette, transparency,
        interlaced, animated, with profiles or texts, larger than `PIL.Image.MAX_IMAGE_PIXELS`, damaged, or not to be read at all.
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
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if colour == _GREY else cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


def _colour_type(data: bytes) -> int | None:
    """The colour type of a whole PNG file whose chunks are all plain and undamaged; None for another."""
    at, end, kinds = len(_SIGNATURE), len(data), []
    while at + 12 <= end:
        length, kind = _CHUNK.unpack_from(data, at)
        stop = at + 8 + length
        if stop + 4 > end or _LENGTHS.get(kind, length) != length:
            return None
        if zlib.crc32(memoryview(data)[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4]):
            return None
        kinds.append(kind)
        at = stop + 4
    if at != end or not _PLAIN.fullmatch(b"".join(kinds)):
        return None
    width, height, bits, colour, *ways = _HEADER.unpack_from(data, len(_SIGNATURE) + 8)
    limit = Image.MAX_IMAGE_PIXELS
    small = width > 0 and height > 0 and (limit is None or width * height <= limit)
    return colour if small and bits == 8 and colour in (_GREY, _RGB) and not any(ways) else None
