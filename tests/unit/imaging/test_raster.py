"""Pictures of every colour mode, as a person would see them, and a table of files that must be refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medplib.errors import InputError
from medplib.imaging.image import read_image
from medplib.imaging.raster import read_raster


def png_bytes(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


def raw_png(width, height, bits, colour, rows):
    """A PNG written by hand, for headers and depths that Pillow cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.dstack([RAMP, RAMP[::-1], 255 - RAMP])


def test_pixels_and_geometry(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.PNG", format="PNG")
    data = read_image(tmp_path / "a.PNG")
    np.testing.assert_array_equal(data.pixels, COLOUR)
    assert data.pixels.dtype == np.uint8
    assert data.pixels.flags.writeable
    assert (data.geometry.shape, data.geometry.affine, data.geometry.kind) == ((3, 4), None, "raster")
    assert data.geometry.path == tmp_path / "a.PNG"


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_are_exact(tmp_path, suffix):
    Image.fromarray(COLOUR).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_raster(tmp_path / f"a{suffix}"), COLOUR)


def test_jpeg_is_close(tmp_path):
    flat = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpeg", quality=95)
    assert np.abs(read_raster(tmp_path / "a.jpeg").astype(int) - flat).max() <= 3


def test_content_counts_not_the_suffix(tmp_path):
    (tmp_path / "really_png.jpg").write_bytes(png_bytes(COLOUR))
    np.testing.assert_array_equal(read_raster(tmp_path / "really_png.jpg"), COLOUR)


def rgba(colour, alpha):
    return np.full((2, 2, 4), (*colour, alpha), np.uint8)


def palette(transparent):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    if transparent:
        image.info["transparency"] = 1
    return image


MODES = {
    "1-bit": (Image.fromarray(np.array([[False, True]])), [[0, 0, 0], [255, 255, 255]]),
    "grey": (Image.fromarray(np.array([[7, 250]], np.uint8)), [[7, 7, 7], [250, 250, 250]]),
    "palette": (palette(False), [[10, 20, 30], [200, 100, 0]]),
    "transparent palette": (palette(True), [[10, 20, 30], [0, 0, 0]]),
    "opaque RGBA": (Image.fromarray(rgba((9, 8, 7), 255)), [[9, 8, 7]] * 2),
    "clear RGBA": (Image.fromarray(rgba((9, 8, 7), 0)), [[0, 0, 0]] * 2),
    "half RGBA over black": (Image.fromarray(rgba((200, 100, 50), 51)), [[40, 20, 10]] * 2),
    "grey with alpha": (Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8)), [[200] * 3, [0] * 3]),
}


@pytest.mark.parametrize("name", MODES)
def test_colour_modes(tmp_path, name):
    image, expected = MODES[name]
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "a.png")[0], expected)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_keeps_its_colours(tmp_path, suffix):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / f"a{suffix}")
    pixel = read_raster(tmp_path / f"a{suffix}")[8, 8].astype(int)
    assert np.abs(pixel - (255, 0, 0)).max() <= 4


ORIENTED = {  # EXIF orientation -> how the upright picture follows from the stored one
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    data = read_image(tmp_path / "a.png")
    upright = ORIENTED[orientation](COLOUR)
    np.testing.assert_array_equal(data.pixels, upright)
    assert data.geometry.shape == upright.shape[:2]


def ramp16():
    values = np.linspace(1000, 5095, 4096).reshape(64, 64)
    return values, np.clip((values - np.percentile(values, 0.5)) / np.subtract(*np.percentile(values, (99.5, 0.5))), 0, 1) * 255


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", ".png"), ("uint16", ".tif"), ("int32", ".tif"), ("float32", ".tif")])
def test_wide_grey_is_windowed_by_percentiles(tmp_path, dtype, suffix):
    values, expected = ramp16()
    Image.fromarray(values.astype(dtype)).save(tmp_path / f"a{suffix}")
    pixels = read_raster(tmp_path / f"a{suffix}")
    assert np.abs(pixels[..., 0] - expected).max() <= 0.51
    assert (pixels[..., 0].min(), pixels[..., 0].max()) == (0, 255)
    assert (pixels == pixels[..., :1]).all()


def test_wide_grey_where_low_is_white(tmp_path):
    values, expected = ramp16()
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.abs(read_raster(tmp_path / "a.tif")[..., 0] - (255 - expected)).max() <= 1


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_png(1, 1, 16, 2, b"\0\x12\xff\x34\x00\xff\x80"))
    np.testing.assert_array_equal(read_raster(tmp_path / "a.png"), [[[0x12, 0x34, 0xFF]]])


def animated(path):
    Image.fromarray(COLOUR).save(path, save_all=True, append_images=[Image.fromarray(COLOUR[::-1])])


def nan_tiff(path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(path)


def gif(path):
    Image.fromarray(RAMP).save(path, "GIF")


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def jpeg(path):
    Image.fromarray(NOISE).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def damaged(path):
    content = bytearray(png_bytes(NOISE))
    content[3000:3020] = bytes(20)
    path.write_bytes(content)


BAD = {  # name of the file: how it is made, words of the error
    "missing.png": (lambda path: None, "no such file"),
    "folder.png": (lambda path: path.mkdir(), "a folder"),
    "empty.png": (lambda path: path.write_bytes(b""), "empty file"),
    "truncated.png": (lambda path: path.write_bytes(png_bytes(NOISE)[:-3000]), "truncated or corrupt"),
    "truncated_header.png": (lambda path: path.write_bytes(png_bytes(NOISE)[:20]), "truncated or corrupt"),
    "truncated.jpg": (jpeg, "truncated or corrupt"),
    "damaged.png": (damaged, "truncated or corrupt"),
    "no_pixels.png": (lambda path: path.write_bytes(png_bytes(NOISE).replace(b"IDAT", b"IDAX")), "damaged header"),
    "text.png": (lambda path: path.write_text("not a picture"), "another kind of content"),
    "gif.png": (gif, "another kind of content"),
    "animated.png": (animated, "2 pages or frames"),
    "pages.tif": (animated, "2 pages or frames"),
    "zero.png": (lambda path: path.write_bytes(raw_png(0, 4, 8, 0, b"")), "another kind of content"),
    "bomb.png": (lambda path: path.write_bytes(raw_png(60000, 60000, 8, 0, b"\0")), "million pixels"),
    "large.png": (lambda path: path.write_bytes(raw_png(10000, 10000, 8, 0, b"\0")), "million pixels"),
    "nan.tif": (nan_tiff, "1 NaN or infinite"),
    "grey_alpha_16.png": (lambda path: path.write_bytes(raw_png(1, 1, 16, 4, b"\0\x12\x34\xff\xff")), "alpha"),
    "scan.dcm": (lambda path: path.write_bytes(b"x"), "the suffix '.dcm'"),
    "no_suffix": (lambda path: path.write_bytes(b"x"), "the suffix ''"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_in_one_line(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert words in message
    assert "\n" not in message
