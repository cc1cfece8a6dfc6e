"""The cache of decoded files: what comes out is what was read, packed in between."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from medplib.data.cache import FileCache
from medplib.errors import InputError
from medplib.imaging.grey import from_plane, grey_plane
from medplib.imaging.image import read_image


def _save(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("shape", [(9, 7), (16, 16), (1, 3), (5, 1)])
def test_images_and_masks_come_out_as_they_were_read(tmp_path, shape):
    rng = np.random.default_rng(0)
    grey = _save(tmp_path / "grey.png", rng.integers(0, 256, shape, dtype=np.uint8))
    colour = _save(tmp_path / "colour.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    mask = rng.random(shape) > 0.5
    stored = _save(tmp_path / "mask.png", mask.astype(np.uint8) * 255)
    cache = FileCache(1)
    for _ in range(2):  # read, then found
        for path in (grey, colour):
            assert np.array_equal(cache.image(path), read_image(path).pixels)
            assert cache.image(path).dtype == np.uint8
        assert np.array_equal(cache.mask(stored, shape), mask)
        assert cache.mask(stored, shape).dtype == np.bool_
    cache.mask(stored, shape)[:] = False  # the caller's own
    assert np.array_equal(cache.mask(stored, shape), mask)
    with pytest.raises(ValueError, match="read-only"):
        cache.image(grey)[0, 0] = 1
    assert cache.used == grey_plane(read_image(grey).pixels).nbytes + 3 * mask.size + -(-mask.size // 8)


def test_a_grey_picture_saved_in_colour_is_kept_as_one_plane(tmp_path):
    plane = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = _save(tmp_path / "grey.png", np.array(from_plane(plane)))
    cache = FileCache(1)
    assert np.array_equal(cache.image(path), from_plane(plane))
    assert cache.used == 64


def test_the_least_recently_used_is_dropped_first(tmp_path, monkeypatch):
    paths = [_save(tmp_path / f"{k}.png", np.full((256, 256), k, np.uint8)) for k in range(4)]
    cache, read = FileCache(3 * 256 * 256 / 2**20), []
    monkeypatch.setattr("medplib.data.cache.read_image", lambda path: read.append(path) or read_image(path))
    for k in (0, 1, 2, 0, 3, 0, 2, 1):  # 3 drops 1, and 1 comes back for 3
        assert (cache.image(paths[k]) == k).all()
    assert read == [paths[k] for k in (0, 1, 2, 3, 1)]
    assert cache.used <= cache.limit


def test_another_limit_drops_what_is_too_much(tmp_path):
    paths = [_save(tmp_path / f"{k}.png", np.full((256, 256), k, np.uint8)) for k in range(4)]
    cache = FileCache(1)
    for path in paths:
        cache.image(path)
    assert cache.used == 4 * 256 * 256
    cache.resize(2 * 256 * 256 / 2**20)
    assert cache.used == 2 * 256 * 256
    copy = pickle.loads(pickle.dumps(cache))  # a worker that is not forked reads for itself
    assert (copy.used, copy.limit) == (0, cache.limit)


def test_a_mask_of_another_size_is_refused_and_not_kept(tmp_path):
    path = _save(tmp_path / "mask.png", np.full((4, 4), 255, np.uint8))
    cache = FileCache(1)
    with pytest.raises(InputError, match="as its image"):
        cache.mask(path, (4, 5))
    assert cache.mask(path, (4, 4)).all()


@pytest.mark.parametrize("value", [(0, 0), (63, 5), (64, 5), (99, 6)])
def test_one_coloured_pixel_anywhere_is_seen(value):
    image = np.zeros((100, 7, 3), np.uint8)
    assert grey_plane(image) is not None
    image[value] = 0, 0, 1
    assert grey_plane(image) is None
