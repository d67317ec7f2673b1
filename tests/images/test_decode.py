from __future__ import annotations

import builtins
import hashlib
import io
import logging
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from finelens.core.schemas import STATUSES
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode
from finelens.images.unheard import heard, unheard

from .helpers import picture, save

LIMITS = DecodeLimits()


def good(path, limits=LIMITS) -> DecodedImage:
    result = decode(path, limits)
    assert isinstance(result, DecodedImage), result
    assert result.pixels.dtype == torch.uint8
    assert result.pixels.shape[0] == 3
    return result


def bad(path, status, limits=LIMITS) -> Failure:
    result = decode(path, limits)
    assert isinstance(result, Failure), "decoded"
    assert result.status == status, result
    assert result.status in STATUSES
    assert result.reason
    assert "\n" not in result.reason
    return result


def array(result: DecodedImage) -> np.ndarray:
    return result.pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.TIF", "a.ppm"])
def test_lossless_formats_are_exact(tmp_path, name):
    save(tmp_path / name)
    result = good(tmp_path / name)
    np.testing.assert_array_equal(array(result), picture())
    assert result.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert result.notes == ()


@pytest.mark.parametrize("name", ["a.JPEG", "a.webp"])
def test_lossy_formats_are_close(tmp_path, name):
    save(tmp_path / name, quality=95)
    assert np.abs(array(good(tmp_path / name)).astype(int) - picture()).mean() < 8


# Depth


def ramp(top: float, dtype) -> np.ndarray:
    return np.tile(np.linspace(0, top, 256), (16, 1)).astype(dtype)


def is_full_ramp(result: DecodedImage) -> None:
    expected = np.tile(np.arange(256), (16, 1))
    for channel in result.pixels.numpy():
        assert np.abs(channel.astype(int) - expected).max() <= 1
    assert result.notes


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, name):
    Image.fromarray(ramp(65535, np.uint16)).save(tmp_path / name)
    is_full_ramp(good(tmp_path / name))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("top", "brightest"), [(2570, 160), (3890, 242), (900, 224), (12000, 187), (20000, 78), (200, 200)])
def test_16_bit_words_of_fewer_bits_are_as_bright_as_they_are(tmp_path, name, top, brightest):
    """Cameras of 10, 12 and 14 bits write 16-bit words: the smallest full scale that holds the largest value is theirs, and the row says so."""
    Image.fromarray(ramp(top, np.uint16)).save(tmp_path / name)
    result = good(tmp_path / name)
    assert int(result.pixels.max()) == brightest
    assert any(str(top) in note or (top == 20000 and "16-bit" in note) for note in result.notes)


@pytest.mark.parametrize("top", [255, 65535, 2**31 - 1])
def test_int32_tiff(tmp_path, top):
    Image.fromarray(ramp(top, np.int32)).save(tmp_path / "a.tif")
    result = good(tmp_path / "a.tif")
    assert np.abs(result.pixels[0].numpy().astype(int) - np.tile(np.arange(256), (16, 1))).max() <= 1
    assert bool(result.notes) == (top > 255)


def test_negative_integers_are_stretched(tmp_path):
    Image.fromarray((ramp(510, np.int32) - 255).astype(np.int32)).save(tmp_path / "a.tif")
    is_full_ramp(good(tmp_path / "a.tif"))


@pytest.mark.parametrize("top", [1.0, 255.0, 5e4, 3e38])
def test_float_tiff(tmp_path, top):
    Image.fromarray(ramp(top, np.float32)).save(tmp_path / "a.tif")
    is_full_ramp(good(tmp_path / "a.tif"))


def test_float_tiff_with_nan_and_infinity(tmp_path):
    values = ramp(1.0, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    result = good(tmp_path / "a.tif")
    assert result.pixels[0, 0, :3].tolist() == [0, 255, 0]
    assert any("finite" in note for note in result.notes)


def test_16_bit_colour_png_takes_the_high_byte(tmp_path):
    rows = b"".join(b"\0" + b"".join(struct.pack(">HHH", x << 8, 65535 - (x << 8), 0) for x in range(16)) for _ in range(16))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    (tmp_path / "a.png").write_bytes(data)
    assert good(tmp_path / "a.png").pixels[:, 0, 3].tolist() == [3, 252, 0]


# Colour models and transparency


def test_cmyk_is_converted_and_noted(tmp_path):
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    result = good(tmp_path / "a.jpg")
    assert torch.allclose(result.pixels.float().mean((1, 2)), torch.tensor([0.0, 255.0, 255.0]), atol=4)
    assert "CMYK" in result.notes[0]


def test_hidden_colours_of_transparent_pixels_do_not_show(tmp_path):
    rgba = np.dstack([picture(), np.zeros((60, 80), np.uint8)])
    rgba[:30, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    result = good(tmp_path / "a.png")
    np.testing.assert_array_equal(array(result)[:30], picture()[:30])
    assert (array(result)[30:] == 255).all()
    assert "white" in result.notes[0]


def test_opaque_alpha_is_exact_and_silent(tmp_path):
    Image.fromarray(np.dstack([picture(), np.full((60, 80), 255, np.uint8)])).save(tmp_path / "a.png")
    result = good(tmp_path / "a.png")
    np.testing.assert_array_equal(array(result), picture())
    assert result.notes == ()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (8, 0, 16, 16))
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    pixels = good(tmp_path / "a.png").pixels
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 15].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray_modes(tmp_path, mode):
    Image.fromarray(picture()).convert(mode).save(tmp_path / "a.png")
    pixels = good(tmp_path / "a.png").pixels
    expected = np.asarray(Image.fromarray(picture()).convert(mode).convert("L"))
    for channel in pixels.numpy():
        np.testing.assert_array_equal(channel, expected)


# Orientation, frames, size


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(array(good(tmp_path / "a.png")), np.rot90(picture(), -1))
    save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert good(tmp_path / "a.jpg").pixels.shape == (3, 80, 60)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert good(tmp_path / "a.jpg").pixels.shape == (3, 60, 80)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_first_frame_only(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    result = good(tmp_path / name)
    assert result.pixels.shape == (3, 32, 32)
    assert result.pixels[:, 5, 5].tolist() == [255, 0, 0]
    assert "first" in result.notes[0]


def test_phone_picture_with_a_second_frame(tmp_path):
    frames = [Image.fromarray(picture(i)) for i in range(2)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:], quality=95)
    result = good(tmp_path / "a.jpg")
    assert np.abs(array(result).astype(int) - picture(0)).mean() < 8
    assert "first" in result.notes[0]


@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (7, 7), (2100, 100)])
def test_degenerate(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    bad(tmp_path / "a.png", "degenerate")


def test_small_and_long_but_usable(tmp_path):
    Image.new("RGB", (8, 160)).save(tmp_path / "a.png")
    assert good(tmp_path / "a.png").pixels.shape == (3, 160, 8)


def test_large_images_are_reduced_like_pillow_does(tmp_path):
    save(tmp_path / "a.png")
    result = good(tmp_path / "a.png", DecodeLimits(short_side=30))
    expected = Image.fromarray(picture()).resize((40, 30), Image.Resampling.BICUBIC)
    assert np.abs(array(result).astype(int) - np.asarray(expected)).max() <= 1


def test_huge_jpeg_is_reduced_while_decoding(tmp_path, monkeypatch):
    smooth = Image.fromarray(picture()).resize((1600, 1200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    loaded = []
    original = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size) or original(self))
    result = good(tmp_path / "a.jpg", DecodeLimits(short_side=100))
    assert max(loaded) <= (200, 150)
    assert result.pixels.shape == (3, 100, 133)
    expected = np.asarray(smooth.resize((133, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(array(result) - expected).mean() < 2


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)


@pytest.mark.parametrize("side", [9000, 12000, 20000, 60000])
def test_bomb_is_refused_from_the_header(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    bad(tmp_path / "a.png", "too_large")


def test_file_beyond_the_byte_budget_is_not_read(tmp_path):
    save(tmp_path / "a.png")
    bad(tmp_path / "a.png", "too_large", DecodeLimits(max_bytes=100))


def test_png_text_bomb(tmp_path):
    save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    body = b"zTXt" + b"k\0\0" + zlib.compress(b"x" * (1 << 27), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    bad(tmp_path / "a.png", "corrupt")


# Files that hold no readable picture


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_truncated(tmp_path, name):
    options = {"compression": "tiff_lzw"} if name == "a.tif" else {}
    save(tmp_path / name, **options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    bad(tmp_path / name, "corrupt")


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert "0 bytes" in bad(tmp_path / "a.jpg", "corrupt").reason


def test_text_and_svg_called_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    bad(tmp_path / "a.jpg", "corrupt")
    (tmp_path / "b.jpg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    assert "SVG" in bad(tmp_path / "b.jpg", "corrupt").reason


OTHERS = {"notes.txt": b"hello", "a.svg": b"<svg/>", "a.psd": b"8BPS\0\1", "a.mp4": b"\0\0\0\x18ftypisom", "README": b"x"}


@pytest.mark.parametrize(("name", "data"), OTHERS.items())
def test_other_files_are_unsupported(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    bad(tmp_path / name, "unsupported")


@pytest.mark.parametrize("installed", [False, True])
def test_camera_raw_of_a_header_alone(tmp_path, monkeypatch, installed):
    """Whether it is damaged can be said by whoever reads such files; without that the remedy is named."""
    if installed:
        pytest.importorskip("rawpy")
    else:
        monkeypatch.setitem(sys.modules, "rawpy", None)
    (tmp_path / "a.cr3").write_bytes(b"\0\0\0\x18ftypcrx ")
    found = bad(tmp_path / "a.cr3", "corrupt" if installed else "unsupported")
    assert ("damaged or ends early" if installed else "finelens[raw]") in found.reason


def test_postscript_never_starts_ghostscript(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "EPS")
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a program"))
    for name, status in (("a.eps", "unsupported"), ("a.jpg", "corrupt")):
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert "PostScript" in bad(tmp_path / name, status).reason


def test_camera_raw_does_not_pass_as_its_preview(tmp_path):
    save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.NEF")
    assert "raw" in bad(tmp_path / "a.NEF", "unsupported").reason


def test_unreadable(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    real = builtins.open

    def denied(path, *args, **kwargs):
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", denied)  # chmod 000 does not stop the superuser, who runs tests in containers
    assert "Permission denied" in bad(tmp_path / "a.png", "unreadable").reason


def test_vanished_and_broken_links(tmp_path):
    bad(tmp_path / "gone.jpg", "vanished")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    bad(tmp_path / "link.jpg", "vanished")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    bad(tmp_path / "loop.jpg", "vanished")


def test_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    bad(tmp_path / "a.jpg", "unsupported")


def test_out_of_memory_is_a_status(tmp_path, monkeypatch):
    save(tmp_path / "a.png")

    def exhausted(*args):
        raise MemoryError

    monkeypatch.setattr("finelens.images.decode.to_rgb", exhausted)
    bad(tmp_path / "a.png", "too_large")


def test_random_damage_never_raises(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.gif", "a.tif", "a.webp", "a.bmp"):
        save(tmp_path / name)
        data = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(15):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            (tmp_path / name).write_bytes(damaged.tobytes())
            assert isinstance(decode(tmp_path / name, LIMITS), (DecodedImage, Failure))


def test_what_readers_say_by_themselves_reaches_nobody(tmp_path, monkeypatch):
    """Of Python programs too, in threads and one after another; the filters of the program are what they were."""

    def say(*given):
        for module in ("PIL.TiffImagePlugin", "pydicom.valuerep", "tifffile.tifffile"):
            warnings.warn_explicit("Tag data larger than file", UserWarning, "x.py", 1, module=module)
        warnings.warn_explicit("of the program", UserWarning, "x.py", 1, module="mine")
        logging.getLogger("tifffile").error("odd tag")
        return torch.zeros(3, 20, 20, dtype=torch.uint8), ()

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr("finelens.images.decode._decode_bytes", say)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            assert all(isinstance(one, DecodedImage) for one in pool.map(lambda _: decode(tmp_path / "a.png", DecodeLimits()), range(20)))
        assert warnings.filters == filters
        assert {str(one.message) for one in found} == {"of the program"}
        assert logging.getLogger("tifffile").handlers
        with heard():
            decode(tmp_path / "a.png", DecodeLimits())
        assert len({str(one.message) for one in found}) == 2


def test_filters_of_warnings_that_another_thread_sets_meanwhile_end_with_it():
    before, inside, over = list(warnings.filters), threading.Event(), threading.Event()

    def read():
        with unheard():
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread.start()
        inside.wait(10)
    over.set()
    thread.join()
    assert list(warnings.filters) == before
    inside.clear(), over.clear()
    thread = threading.Thread(target=read)
    thread.start()
    inside.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over.set()
        thread.join()
    assert list(warnings.filters) == before
