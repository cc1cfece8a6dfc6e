"""Plain PNG files are read as Pillow reads them, and everything else is left to Pillow."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from medplib.errors import InputError
from medplib.imaging.mask import read_mask
from medplib.imaging.png import read_plain_png
from medplib.imaging.raster import read_raster

TURNED = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
"""EXIF that says: turn by 90 degrees."""
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (41, 29, 3), dtype=np.uint8)


def _png(picture: Image.Image | np.ndarray, **options: object) -> bytes:
    data = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(data, "PNG", **options)
    return data.getvalue()


def _with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A chunk behind the header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk + data[33:]


def _text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "some")
    return info


@pytest.mark.parametrize(
    "data",
    [
        _png(GREY),
        _png(COLOUR),
        _png(GREY, compress_level=0),
        _png(COLOUR, dpi=(72, 72)),
        _png(RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)),
    ],
    ids=["grey", "colour", "stored", "pHYs", "several IDAT"],
)
def test_pixels_are_those_of_pillow(data: bytes, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with Image.open(path) as picture:
        wanted = np.asarray(picture)
    found = read_plain_png(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, wanted)
    assert np.array_equal(read_raster(path), wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2))
    assert np.array_equal(read_mask(path, size=None, rule="gt127"), (wanted if wanted.ndim == 2 else wanted.max(axis=2)) > 127)


@pytest.mark.parametrize(
    "data",
    [
        _png(Image.fromarray(GREY).convert("1")),
        _png(Image.fromarray(COLOUR).quantize(8)),
        _png(GREY.astype(np.uint16) * 255),
        _png(Image.fromarray(COLOUR).convert("RGBA")),
        _png(Image.fromarray(GREY).convert("LA")),
        _png(GREY, transparency=3),
        _png(GREY, pnginfo=_text()),
        _with_chunk(_png(GREY), b"eXIf", TURNED),
        _png(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        _png(GREY) + b"behind",
        _with_chunk(_png(COLOUR), b"gAMA", struct.pack(">I", 20000)),
        _with_chunk(_png(COLOUR), b"sRGB", b"\x00"),
        _png(GREY, icc_profile=b"no profile"),
        _with_chunk(_png(GREY), b"pHYs", b"\x00"),
        b"",
        b"\xff\xd8\xff\xe0 some JPEG",
    ],
    ids=[
        "1 bit",
        "palette",
        "16 bit",
        "RGBA",
        "grey alpha",
        "tRNS",
        "text",
        "turned",
        "animated",
        "more behind",
        "gamma",
        "sRGB",
        "profile",
        "short pHYs",
        "empty",
        "JPEG",
    ],
)
def test_what_is_special_is_left_to_pillow(data: bytes, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert read_plain_png(path) is None


def test_what_cannot_be_opened_is_left_to_pillow(tmp_path: Path):
    assert read_plain_png(tmp_path / "none.png") is None
    assert read_plain_png(tmp_path) is None


def test_too_large_is_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    path.write_bytes(_png(GREY))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size)
    assert read_plain_png(path) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    assert read_plain_png(path) is None
    with pytest.raises(InputError, match="a larger picture"):
        read_raster(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_never_decoded(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """One changed byte or a cut anywhere."""
    whole = bytearray(_png(COLOUR))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole = whole[:at]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    path.write_bytes(bytes(whole))
    assert read_plain_png(path) is None


def test_damage_is_one_line_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    whole = bytearray(_png(COLOUR))
    whole[len(whole) // 2] ^= 255
    path = tmp_path / "a.png"
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="corrupt file"):
        read_raster(path)
    assert capfd.readouterr() == ("", "")
