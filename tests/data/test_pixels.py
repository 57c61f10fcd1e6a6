"""Pixels of image files: what is converted without a loss, what with a word, what is refused."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from fdistill.data.decode import UnreadableImage, read_image


def pixel(file, channels=3):
    """The corner of an image as it is read, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = read_image(file, 8, channels)
    return pixels[:, 0, 0].tolist(), " ".join(str(each.message) for each in caught)


def png_of_16_bits(kind, channels):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = (b"\0" + bytes([1, 2]) * channels * 8) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 40), (51, 212)])
def test_transparency_is_laid_on_white(suffix, alpha, expected, tmp_path):
    file = tmp_path / f"x.{suffix}"
    Image.new("RGBA", (8, 8), (40, 40, 40, alpha)).save(file, lossless=True)
    found, words = pixel(file)
    assert found == [expected] * 3  # 40 a + 255 (1 - a)
    assert ("white" in words) == (alpha < 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_is_white_in_every_mode(mode, channels, tmp_path):
    colour = {"P": 1, "L": 7, "RGB": (7, 7, 7), "1": 0, "LA": (7, 0)}[mode]
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 7, 7, 7])
    key = {} if mode == "LA" else {"transparency": colour}
    image.save(tmp_path / "x.png", **key)
    assert pixel(tmp_path / "x.png", channels)[0] == [255] * channels


def test_palettes_grey_and_bits_keep_their_values(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "p.png")
    assert pixel(tmp_path / "p.png") == ([9, 8, 7], "")
    Image.new("L", (8, 8), 9).save(tmp_path / "l.png")
    assert pixel(tmp_path / "l.png") == ([9, 9, 9], "")
    Image.new("1", (8, 8), 1).save(tmp_path / "1.png")
    assert pixel(tmp_path / "1.png", 1) == ([255], "")


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused_in_every_mode(kind, channels, tmp_path):
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(kind, channels))
    with pytest.raises(UnreadableImage, match="8 bits"):
        read_image(tmp_path / "deep.png", 8, 3)
    (tmp_path / "deep.ppm").write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))
    with pytest.raises(UnreadableImage, match="8 bits"):
        read_image(tmp_path / "deep.ppm", 8, 3)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_of_other_channels_are_refused(mode, tmp_path):
    Image.new(mode, (8, 8)).save(tmp_path / "x.tiff")
    with pytest.raises(UnreadableImage, match=f"mode {mode}"):
        read_image(tmp_path / "x.tiff", 8, 3)


def test_cmyk_is_converted_with_a_word(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=100)
    found, words = pixel(tmp_path / "x.jpg")
    assert np.allclose(found, [0, 255, 255], atol=3)
    assert "CMYK" in words


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_read_with_a_word(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (200, 100, 0)]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    found, words = pixel(tmp_path / f"x.{suffix}")
    assert np.allclose(found, 200, atol=2)
    assert "first" in words


@pytest.mark.parametrize("suffix", ["webp", "png", "tiff"])
def test_every_format_is_turned_upright(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[-1] = 255
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=exif, lossless=True)
    assert pixel(tmp_path / f"x.{suffix}")[0] == [255] * 3


def test_a_pointer_of_git_lfs_says_so(tmp_path):
    (tmp_path / "x.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UnreadableImage, match="lfs"):
        read_image(tmp_path / "x.jpg", 8, 3)
