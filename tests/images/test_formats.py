"""Photographs in the containers that people have: read, upright exactly once, and refused by name where a library is missing."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from finelens.core.console import Console
from finelens.images.containers import jxl_size
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes
from finelens.images.load import say_notes
from finelens.images.store import EncodedImage, load_images

from .helpers import deep_png, dicom, dng, picture

LIMITS = DecodeLimits()
RED_BLUE = np.zeros((120, 160, 3), np.uint8)
RED_BLUE[:, :, 2] = 255
RED_BLUE[:60, :80] = 255, 0, 0
TURNS = {1: RED_BLUE, 3: np.rot90(RED_BLUE, 2), 6: np.rot90(RED_BLUE), 8: np.rot90(RED_BLUE, -1), 2: RED_BLUE[:, ::-1], 4: RED_BLUE[::-1]}
TURNS |= {5: RED_BLUE.transpose(1, 0, 2), 7: RED_BLUE[::-1, ::-1].transpose(1, 0, 2)}


def saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, name: str = "a.jpg", limits: DecodeLimits = LIMITS) -> DecodedImage:
    result = decode_bytes(data, name, limits)
    assert isinstance(result, DecodedImage), result
    return result


def refused(data: bytes, name: str, limits: DecodeLimits = LIMITS) -> Failure:
    result = decode_bytes(data, name, limits)
    assert isinstance(result, Failure)
    return result


def is_upright(result: DecodedImage) -> bool:
    pixels = result.pixels.permute(1, 2, 0).numpy().astype(int)
    return pixels.shape == RED_BLUE.shape and np.abs(pixels - RED_BLUE).mean() < 12


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp(orientation: int) -> bytes:
    body = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{body}</rdf:RDF></x:xmpmeta>'.encode()
    )


def codec(kind: str) -> str:
    """The format, where it can be written here."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    return kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_upright_once_by_exif(kind, orientation):
    data = saved(TURNS[orientation], codec(kind), exif=exif(orientation).tobytes(), quality=90)
    result = read(data)
    assert is_upright(result)
    assert result.notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_once_by_xmp(kind, orientation):
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
        data = saved(TURNS[orientation], kind, pnginfo=info)
    elif kind == "TIFF":
        data = saved(TURNS[orientation], kind, tiffinfo={700: xmp(orientation)})
    else:
        data = saved(TURNS[orientation], codec(kind), xmp=xmp(orientation), quality=90)
    assert is_upright(read(data))


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_turned_by_its_container_and_told_by_exif_too(kind):
    """Once turned on the way in, saved with the tags it had: the container is believed, and the tag is not applied on top."""
    with Image.open(io.BytesIO(saved(TURNS[6], codec(kind), exif=exif(6).tobytes(), quality=90))) as image:
        again = io.BytesIO()
        image.load()
        image.save(again, kind, exif=image.getexif().tobytes(), quality=90)
    assert is_upright(read(again.getvalue()))


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "a.avif"), ("AVIF", "a.jpg"), ("HEIF", "a.heic"), ("HEIF", "a.JPG")])
def test_photographs_of_phones_under_any_name(kind, name):
    data = saved(picture(0, 300, 400), codec(kind), quality=95)
    result = read(data, name)
    assert np.abs(result.pixels.permute(1, 2, 0).numpy().astype(int) - picture(0, 300, 400)).mean() < 8
    for cut in (30, len(data) // 2, len(data) - 5):
        assert refused(data[:cut], name).status == "corrupt"
    assert {"AVIF": "AVIF", "HEIF": "HEIC"}[kind] in refused(data[:30], name).reason
    assert refused(data, name, DecodeLimits(max_pixels=1000)).status == "too_large"


@pytest.mark.parametrize(
    ("module", "data", "remedy"),
    [
        ("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0", "pip install pillow-heif"),
        ("pillow_jxl.JpegXLImagePlugin", b"\xff\x0a\x7f" + bytes(20), r"pip install 'finelens\[jxl\]'"),
        ("pydicom", bytes(128) + b"DICM" + bytes(40), r"pip install 'finelens\[dicom\]'"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, module, data, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    result = refused(data, "a.heic")
    assert result.status == "unsupported"
    assert remedy.replace("\\", "") in result.reason


def test_jpeg_xl():
    codec("JXL")
    data = saved(picture(), "JXL", lossless=True)
    np.testing.assert_array_equal(read(data, "a.jxl").pixels.permute(1, 2, 0), picture())
    assert jxl_size(data) == (80, 60)
    for size in ((64, 64), (256, 512), (1000, 10), (33, 77), (300, 200)):
        assert jxl_size(saved(np.zeros((size[1], size[0], 3), np.uint8), "JXL")) == size
    assert refused(data, "a.jxl", DecodeLimits(max_pixels=1000)).status == "too_large"


@pytest.mark.parametrize("name", ["a.dng", "a.tif", "a.NEF"])
def test_camera_raw_by_its_preview_whatever_it_is_called(name):
    large = np.asarray(Image.fromarray(RED_BLUE).resize((400, 300)))
    result = read(dng(preview=saved(large, "JPEG", quality=95)), name)
    assert result.pixels.shape == (3, 300, 400)
    assert np.abs(result.pixels.permute(1, 2, 0).numpy().astype(int) - large).mean() < 8
    assert result.notes == ("camera raw: its preview of 400 x 300 pixels is used",)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("own", [False, True])
def test_previews_are_turned_once(orientation, own):
    """By their own tag where they have one, else by the raw file's."""
    lying = np.asarray(Image.fromarray(np.ascontiguousarray(TURNS[orientation])).resize((400, 400)))
    tags = {"exif": exif(orientation)} if own else {}
    result = read(dng(None, orientation, saved(lying, "JPEG", quality=95, **tags)), "a.dng")
    expected = np.asarray(Image.fromarray(RED_BLUE).resize((400, 400))).astype(int)
    assert np.abs(result.pixels.permute(1, 2, 0).numpy() - expected).mean() < 12


def test_a_thumbnail_does_not_pass_as_the_photograph(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    result = refused(dng(preview=saved(RED_BLUE, "JPEG")), "a.dng")
    assert result.status == "unsupported"
    assert "pip install 'finelens[raw]'" in result.reason


def test_dicom_through_its_window():
    ramp = np.tile(np.arange(0, 4096, 16, dtype="<u2"), (64, 1))
    plain = read(dicom(ramp), "a.dcm")
    np.testing.assert_allclose(plain.pixels[0, 0].numpy(), np.rint(ramp[0] * (255 / 4095)), atol=1)
    window = {"WindowCenter": "100", "WindowWidth": "400", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    shown = read(dicom(ramp, **window), "a.dcm")
    expected = ((ramp[0].astype(float) - 1024 - 99.5) / 399 + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(shown.pixels[0, 0].numpy(), expected, atol=1)
    assert shown.notes == ("DICOM window centre 100, width 400",)
    negative = read(dicom(ramp, PhotometricInterpretation="MONOCHROME1", **window), "a.jpg")
    np.testing.assert_array_equal(255 - negative.pixels.numpy(), shown.pixels.numpy())
    assert refused(dicom(ramp), "a.dcm", DecodeLimits(max_pixels=1000)).status == "too_large"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 0}])
def test_jpeg_without_its_end_marker(options):
    data = saved(picture(), "JPEG", quality=92, **options)
    assert data.endswith(b"\xff\xd9")
    for end in (b"", b"\xff", bytes(40)):
        result = read(data[:-2] + end)
        assert (result.pixels == read(data).pixels).all()
        # Behind whole pixels libjpeg passes over some bytes without a word.
        assert end or options.get("restart_marker_blocks") or "end marker is missing" in result.notes[0]
    scan = data.rindex(b"\xff\xda")
    for cut in range(scan + 20, len(data) - 40, max(1, (len(data) - scan) // 60)):
        # What lacks pixels stays corrupt, also where it ends at a restart marker.
        assert refused(data[:cut], "a.jpg").status == "corrupt", (cut, len(data))


def test_large_jpegs_are_judged_by_the_size_they_are_decoded_at():
    smooth = np.asarray(Image.fromarray(picture()).resize((1600, 1200)))
    limits = DecodeLimits(max_pixels=200_000, short_side=150)
    assert read(saved(smooth, "JPEG"), "a.jpg", limits).pixels.shape == (3, 150, 200)
    for data in (saved(smooth, "PNG"), saved(smooth, "JPEG", progressive=True)):
        assert "views.max_megapixels" in refused(data, "a.jpg", limits).reason


def test_16_bit_colour_png_of_fewer_bits():
    values = picture().astype(np.uint16) * 16 + 7
    result = read(deep_png(values), "a.png")
    assert np.abs(result.pixels.permute(1, 2, 0).numpy() - np.rint(values * (255 / 4095))).max() <= 1
    assert "12 bits" in result.notes[0]


def test_notes_are_summed_up_in_the_terminal(capsys):
    wide = [saved((picture(i)[:, :, 0].astype(np.uint16)) * (i + 1), "PNG") for i in range(3)]
    items = [EncodedImage(data, f"{i}.png") for i, data in enumerate([*wide, saved(picture(), "PNG")])]
    say_notes(load_images(items).records, Console())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "noted: 3 of 4 files were read with a note (column reason)"
    assert said[1].startswith("  3 x 16-bit words hold at most ")
    assert said[1].endswith("(first 0.png)")
