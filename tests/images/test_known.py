from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover
from finelens.images.known import LONGEST, KnownPhotographs
from finelens.images.store import load_images

from .helpers import save


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(4):
        save(root / f"{i}.png", seed=i)
    shutil.copy(root / "0.png", root / "copy.png")
    Image.new("CMYK", (40, 30), (10, 200, 30, 5)).save(root / "noted.jpg")
    (root / "bad.jpg").write_bytes(b"no image")
    return root


def test_what_was_read_before_is_known_by_its_bytes(folder, decoded):
    files = discover(folder)
    first = load_images(files, seldom=True)
    assert sorted(decoded) == sorted(file.name for file in files)
    assert next(record for record in first.records if record.name == "noted.jpg").reason
    decoded.clear()
    again = load_images(files, seldom=True)
    # What is no image is looked at again.
    assert decoded == ["bad.jpg"]
    assert again.records == first.records == load_images(files).records
    assert again.store.ids == first.store.ids
    decoded.clear()
    assert all(torch.equal(again.store[i], first.store[i]) for i in range(len(first.store)))
    assert len(decoded) == len(first.store)


def test_a_copy_elsewhere_is_known_and_a_change_is_not(folder, decoded):
    load_images(discover(folder), seldom=True)
    (folder / "2.png").rename(folder / "renamed.png")
    save(folder / "3.png", seed=9)
    decoded.clear()
    load_images(discover(folder), seldom=True)
    assert sorted(decoded) == ["3.png", "bad.jpg"]


def test_other_limits_and_other_parts_are_other_pictures(folder, decoded):
    load_images(discover(folder), seldom=True)
    decoded.clear()
    load_images(discover(folder), DecodeLimits(short_side=20), seldom=True)
    assert len(decoded) == len(discover(folder))
    part = [ImageFile(str(folder / "0.png"), "0.png#1", Box(0.1, 0.2, 0.5, 0.5))]
    decoded.clear()
    first = load_images(part, seldom=True)
    again = load_images(part, seldom=True)
    assert decoded == ["0.png"]
    assert again.records == first.records
    assert torch.equal(again.store[0], first.store[0])


def test_a_photograph_that_changes_meanwhile_is_refused(folder):
    files = discover(folder)
    load_images(files, seldom=True)
    loaded = load_images(files, seldom=True)
    place = next(record.index for record in loaded.records if record.name == "1.png")
    save(folder / "1.png", seed=77)
    with pytest.raises(UserError, match=r"1\.png has changed since"):
        loaded.store[place]
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png has changed since"):
        loaded.store[place]


def test_a_damaged_cache_or_none_costs_time_only(folder, decoded, cache, monkeypatch):
    files = discover(folder)
    expected = load_images(files, seldom=True).records
    for shard in cache.rglob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-2000:] = bytes(2000)
        shard.write_bytes(data)
    decoded.clear()
    assert load_images(files, seldom=True).records == expected
    assert len(decoded) > 1
    monkeypatch.setenv("FINELENS_CACHE_GB", "0")
    decoded.clear()
    assert load_images(files, seldom=True).records == expected
    assert len(decoded) == len(files)


def test_long_notes_are_not_kept(folder, tmp_path):
    path, limits = folder / "0.png", DecodeLimits()
    with KnownPhotographs(limits) as known:
        known.add("a" * 64, path, ("x" * (LONGEST + 1),))
        known.add("b" * 64, path, ("one", "two"))
        known.add("c" * 64, path, ())
    with KnownPhotographs(limits) as known:
        assert known.notes("a" * 64, path) is None
        assert known.notes("b" * 64, path) == ("one", "two")
        assert known.notes("c" * 64, path) == ()
        # Another ending may mean another reader.
        assert known.notes("c" * 64, tmp_path / "0.dng") is None
