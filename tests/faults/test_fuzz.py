"""Random damage to everything that is read: images at the decode boundary, and every file that finelens wrote and reads back.

The only outcomes are an answer, a typed status, or a ``UserError`` of one line.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finelens import api
from finelens.classes.labels import read_labels
from finelens.core.schemas import STATUSES
from finelens.feature_store.files import read_features
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode
from finelens.reporting.record import read_run
from finelens.runs.config import from_json
from finelens.runs.folder import RunFolder
from finelens.runs.model import load_model
from finelens.storage import cache
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE
from finelens.storage.files import read_json
from finelens.storage.predictions import read_predictions
from finelens.storage.tensors import load_tensors, save_tensors
from finelens.training.checkpoint import load_checkpoint, read_events_offset
from tests.faults.examples import EXAMPLES, attempt
from tests.methods.tiny import random_heads, tiny_engine
from tests.toy import QUIET, picture, write_classes, write_photos

LIMITS = DecodeLimits(max_pixels=1_000_000, max_bytes=1 << 20)
# Fixtures of a session or module are only read; each example writes to a place of its own.
FUZZ = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = Image.fromarray(picture(1, 0, 24, 30))
    (pixels.convert("I").convert(mode) if mode == "I;16" else pixels.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def _frames(kind: str) -> bytes:
    buffer, frames = io.BytesIO(), [Image.fromarray(picture(i, 0, 24, 30)) for i in range(3)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    return _image("JPEG", exif=exif)


SEEDS = {
    "a.jpg": _image("JPEG"),
    "progressive.jpg": _image("JPEG", progressive=True),
    "cmyk.jpg": _image("JPEG", "CMYK"),
    "exif.jpg": _exif(),
    "a.png": _image("PNG"),
    "alpha.png": _image("PNG", "RGBA"),
    "palette.png": _image("PNG", "P", transparency=0),
    "deep.png": _image("PNG", "I;16"),
    "a.gif": _frames("GIF"),
    "a.webp": _image("WEBP"),
    "moving.webp": _frames("WEBP"),
    "a.tif": _image("TIFF"),
    "float.tif": _image("TIFF", "F"),
    "packed.tif": _image("TIFF", compression="tiff_deflate"),
    "jpeg.tif": _image("TIFF", compression="jpeg"),
    "a.bmp": _image("BMP"),
    "a.ppm": _image("PPM"),
}


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes changed, cut out, put in, doubled, or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("set", "flip", "cut", "insert", "double", "end")))
        if kind == "set":
            data[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 50))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 50))]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
@FUZZ
@given(data=st.data())
def test_any_damage_to_an_image_is_a_status(tmp_path_factory, seed, data):
    path = tmp_path_factory.mktemp("image", numbered=True) / seed
    path.write_bytes(data.draw(damaged(SEEDS[seed])))
    result = decode(path, LIMITS)
    path.unlink()
    path.parent.rmdir()
    if isinstance(result, Failure):
        assert result.status in STATUSES[1:]
        assert result.reason
        assert "\n" not in result.reason
    else:
        assert isinstance(result, DecodedImage)
        assert result.pixels.dtype == torch.uint8
        assert result.pixels.ndim == 3
        assert result.pixels.shape[0] == 3


# What a run wrote.


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_vit) -> Path:
    """A folder with the run and a labels file."""
    root = tmp_path_factory.mktemp("finished")
    photos = write_photos(root / "photos", per_class=1)
    names = write_classes(root / "names.txt")
    options = {"training": {"epochs": 1, "precision": "float32"}}
    api.adapt(photos, names, root / "run", method="dpa", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    np.save(root / "features.npy", np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32))
    save_tensors(root / "features.safetensors", {"features": torch.randn(5, 8, generator=torch.Generator().manual_seed(0))})
    (root / "labels.csv").write_text('path,label\nred stripe/0.png,red stripe\n\'=odd,"blue, disc"\n')
    return root


def _read_events(root: Path) -> list[str]:
    with RunFolder.open(root / "run", lock=False) as run:
        return [event["event"] for event in run.events()]


def _read_checkpoint(root: Path, tiny_vit: Path) -> Any:
    from finelens.methods.registry import find_method
    from finelens.training.config import TrainingConfig
    from finelens.training.schedule import build_optimizer

    engine, method = tiny_engine(tiny_vit), find_method("dpa")
    task = method.build(engine, random_heads(4), method.config_class(), TrainingConfig(), 0)
    folder = root / "run" / "checkpoint"
    return read_events_offset(folder), load_checkpoint(folder, task, engine.backbone, build_optimizer(task, 1e-3))


def _read_record(root: Path) -> Any:
    with RunFolder.open(root / "run", lock=False) as run:
        return read_run(run)


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "run/config.json": lambda root, _: RunFolder.open(root / "run", lock=False).config,
    "run/events.jsonl": lambda root, _: _read_events(root),
    "run/predictions.csv": lambda root, _: read_predictions(root / "run" / "predictions.csv"),
    "labels.csv": lambda root, _: read_labels(root / "photos", root / "labels.csv", ["red stripe"]),
    "run/model/model.json": lambda root, _: load_model(root / "run" / "model"),
    "run/model/model.safetensors": lambda root, _: load_tensors(root / "run" / "model" / "model.safetensors"),
    "run/model/zero_shot.safetensors": lambda root, _: load_model(root / "run" / "model"),
    "run/checkpoint/last.safetensors": _read_checkpoint,
    "run/signals.json": lambda root, _: _read_record(root),
    "features.npy": lambda root, _: read_features(root / "features.npy"),
    "features.safetensors": lambda root, _: read_features(root / "features.safetensors"),
}


@pytest.mark.parametrize("file", READERS)
@FUZZ
@given(data=st.data())
def test_any_damage_to_a_file_that_is_read_back_is_one_line(finished, tiny_vit, file, data):
    path = finished / file
    whole = path.read_bytes()
    # Headers are where the structure is: half of the damage goes to the first kilobyte.
    head = len(whole) if data.draw(st.booleans()) else min(1000, len(whole))
    try:
        path.write_bytes(data.draw(damaged(whole[:head])) + whole[head:])
        attempt(READERS[file], finished, tiny_vit)
    finally:
        path.write_bytes(whole)


@FUZZ
@given(content=st.binary(max_size=300))
def test_any_bytes_as_a_table(finished, tmp_path, content):
    for header in (b"", b"path,class,probability,margin,top5,zero_shot_class,status,reason\r\n", b"path,label\n"):
        (tmp_path / "table.csv").write_bytes(header + content)
        attempt(read_predictions, tmp_path / "table.csv")
        attempt(read_labels, finished / "photos", tmp_path / "table.csv", ["red stripe"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-3, 300) | st.just(2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


def _replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = _replaced(document[place[0]], place[1:], value)
    return copy


@FUZZ
@given(data=st.data())
def test_any_document_as_configuration_or_model(finished, data):
    """Valid JSON with one value exchanged for another: structure is checked, not assumed."""
    config = read_json(finished / "run" / "config.json")
    path = finished / "run" / "signals.json"
    whole, signals = path.read_bytes(), read_json(path)
    try:
        path.write_text(json.dumps(_replaced(signals, data.draw(st.sampled_from(_places(signals))), data.draw(VALUES))))
        attempt(_read_record, finished)
    finally:
        path.write_bytes(whole)
    attempt(from_json, _replaced(config, data.draw(st.sampled_from(_places(config))), data.draw(VALUES)), "config.json")
    path = finished / "run" / "model" / "model.json"
    whole, model = path.read_bytes(), read_json(path)
    try:
        path.write_text(json.dumps(_replaced(model, data.draw(st.sampled_from(_places(model))), data.draw(VALUES))))
        attempt(load_model, path.parent)
    finally:
        path.write_bytes(whole)


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_cache_entry_is_computed_again(tmp_path, data):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
        good = {"a": torch.arange(20.0), "b": torch.ones(3, 2, dtype=torch.int64)}
        cache.cached_tensors(["k"], lambda: good)
        (path,) = (tmp_path / "cache").rglob("*.safetensors")
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        for _ in range(2):
            found = cache.cached_tensors(["k"], lambda: good)
            assert found.keys() == good.keys()
            assert all(torch.equal(found[name], good[name]) for name in good)


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(4294967296, 4294967296)", "(-1, 2)", "(2, 2), 'x': (lambda: 1)()"])
def test_absurd_headers_of_arrays_are_one_line(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    _, refusal = attempt(read_features, tmp_path / "a.npy")
    assert refusal is not None
    assert "a.npy" in refusal


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    np.save(tmp_path / "a.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    _, refusal = attempt(read_features, tmp_path / "a.npy")
    assert refusal is not None
    assert "holds pickled objects, which are never read" in refusal
    assert not trace.exists()
