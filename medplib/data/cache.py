"""Decoded images and masks in memory, packed: a grey image is kept as one plane, a mask as bits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medplib.imaging.grey import from_plane, grey_plane
from medplib.imaging.image import read_image
from medplib.imaging.mask import read_mask


class FileCache:
    """Decoded files, least recently used dropped first. Training stages of one command share one; every loader process has its own.

    Args:
        megabytes: of packed pixels, 2**20 bytes each; the newest file stays whatever its size.
    """

    def __init__(self, megabytes: float) -> None:
        self.limit, self.used = megabytes * 2**20, 0
        self._arrays: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._spacings: dict[Path, tuple[float, float] | None] = {}

    def __reduce__(self) -> tuple[type[FileCache], tuple[float]]:
        """A process that is not forked begins with an empty one."""
        return FileCache, (self.limit / 2**20,)

    def resize(self, megabytes: float) -> None:
        """Give it another limit."""
        self.limit = megabytes * 2**20
        self._drop()

    def image(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8, not to be written to; a grey image is a view of one plane, see `from_plane`."""
        kept = self._get(path, lambda: self._read(path))
        return from_plane(kept) if kept.ndim == 2 else kept

    def spacing(self, path: Path) -> tuple[float, float] | None:
        """Distance between rows and between columns in mm of an image that was read; None when its file does not say."""
        return self._spacings[path]

    def _read(self, path: Path) -> np.ndarray:
        image = read_image(path)
        self._spacings[path] = image.geometry.spacing  # two numbers an image: never dropped
        plane = grey_plane(image.pixels)
        return image.pixels if plane is None else plane

    def mask(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool, the caller's own; InputError when its size is not that of the image."""
        packed = self._get(path, lambda: np.packbits(read_mask(path, size=size)))
        return np.unpackbits(packed, count=size[0] * size[1]).view(bool).reshape(size)

    def _get(self, path: Path, read: Callable[[], np.ndarray]) -> np.ndarray:
        if path in self._arrays:
            self._arrays.move_to_end(path)
            return self._arrays[path]
        array = read()
        self._arrays[path] = array
        self.used += array.nbytes
        self._drop()
        return array

    def _drop(self) -> None:
        while self.used > self.limit and len(self._arrays) > 1:
            self.used -= self._arrays.popitem(last=False)[1].nbytes
