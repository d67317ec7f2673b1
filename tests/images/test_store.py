from __future__ import annotations

import errno
import hashlib
import shutil
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover
from finelens.images.store import load_images

from .helpers import picture, save, tensor


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for i in range(6):
        path = root / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, seed=i)
    (root / "class0" / "bad.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("hello")
    return root


def test_n_files_in_n_records_out(folder):
    done = []
    files = discover(folder)
    loaded = load_images(files, workers=2, progress=done.append)
    assert [r.name for r in loaded.records] == [f.name for f in files]
    assert [r.status for r in loaded.records] == ["ok"] * 3 + ["corrupt"] + ["ok"] * 3 + ["unsupported"]
    assert done == list(range(1, 9))
    assert len(loaded.store) == 6
    assert loaded.store.ids == sorted(loaded.store.ids)
    for record, file in zip(loaded.records, files, strict=True):
        if record.status == "ok":
            assert record.sample_id == hashlib.sha256(file.path.read_bytes()).hexdigest()
            assert loaded.store.ids[record.index] == record.sample_id
            np.testing.assert_array_equal(loaded.store[record.index].permute(1, 2, 0), np.asarray(Image.open(file.path)))
        else:
            assert record.index is None
            assert record.sample_id is None
            assert record.reason


def same(a, b) -> bool:
    return a.ids == b.ids and all(torch.equal(a[i], b[i]) for i in range(len(a)))


def test_store_does_not_depend_on_names_folders_order_or_workers(folder, tmp_path):
    reference = load_images(discover(folder)).store
    for i, file in enumerate(reversed(discover(folder))):
        target = tmp_path / "other" / f"x{i % 3}" / f"{i:02d}{file.path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.path, target)
    assert same(load_images(discover(tmp_path / "other"), workers=1).store, reference)
    assert same(load_images(list(reversed(discover(folder))), workers=3).store, reference)


def test_exact_duplicates_have_ordinals_and_share_pixels(folder):
    for name in ("dup1.png", "dup2.png"):
        shutil.copy(folder / "class0" / "0.png", folder / name)
    loaded = load_images(discover(folder))
    digest = hashlib.sha256((folder / "dup1.png").read_bytes()).hexdigest()
    by_name = {r.name: r for r in loaded.records}
    ids = [by_name[name].sample_id for name in ("class0/0.png", "dup1.png", "dup2.png")]
    assert ids == [digest, f"{digest}-1", f"{digest}-2"]
    assert len(set(loaded.store.ids)) == len(loaded.store) == 8
    indices = [by_name[name].index for name in ("class0/0.png", "dup1.png")]
    assert loaded.store[indices[0]].data_ptr() == loaded.store[indices[1]].data_ptr()


def test_file_replaced_by_another_is_not_confused(folder):
    files = discover(folder)
    (folder / "class0" / "0.png").unlink()
    loaded = load_images(files)
    assert loaded.records[0].status == "vanished"
    assert len(loaded.store) == 5


@pytest.mark.parametrize("budget", [0, 60 * 80 * 3 * 3])
def test_spilled_pixels_are_the_same(folder, tmp_path, budget):
    spill = tmp_path / "spill"
    spill.mkdir()
    files = discover(folder)
    loaded = load_images(files, memory_budget=budget, spill_dir=spill)
    assert same(loaded.store, load_images(files).store)
    assert list(spill.iterdir()) == []  # nothing to clean up, even after a kill
    loaded.store[0].zero_()  # copy on write: does not crash


def test_disk_full_while_spilling_names_the_remedy(folder, tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finelens.images.spill.tempfile.TemporaryFile", lambda **kwargs: Full())
    with pytest.raises(UserError, match="No space left on device; free some space"):
        load_images(discover(folder), memory_budget=0, spill_dir=tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("finelens-decode")]


def test_memory_is_flat_when_spilling(tmp_path):
    files = []
    for i in range(30):
        Image.fromarray(picture(i, 300, 400)).save(tmp_path / f"{i}.bmp")
        files.append(ImageFile(str(tmp_path / f"{i}.bmp"), f"{i}.bmp"))
    tracemalloc.start()
    load_images(files, memory_budget=0, spill_dir=tmp_path, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 300 * 400 * 3  # file bytes of the few images in flight, of 30


def test_short_side_is_capped(folder):
    loaded = load_images(discover(folder), DecodeLimits(short_side=32))
    assert {min(loaded.store[i].shape[1:]) for i in range(len(loaded.store))} == {32}


# Python objects


class Unlabelled:
    """A sample whose labels must not be touched."""

    def __init__(self, image):
        self.image = image

    def __getattr__(self, name):
        raise AssertionError(f"read {name}") if name in ("label", "labels", "target", "targets") else AttributeError(name)


class FirstOnly(tuple):
    def __getitem__(self, i):
        assert i == 0, "read beyond the image"
        return super().__getitem__(i)

    def __iter__(self):
        raise AssertionError("iterated over a labelled sample")


class DataSet:
    """Length and positions, nothing else; every label raises."""

    def __init__(self, items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, i):
        return self._items[i]

    @property
    def labels(self):
        raise AssertionError("read labels")

    label = targets = target = labels


def test_all_kinds_of_items_give_the_same_pixels_and_id(tmp_path):
    array = picture()
    items = [
        array,
        tensor(),
        Image.fromarray(array),
        (array, "label"),
        [tensor(), 3],
        SimpleNamespace(image=array),
        Unlabelled(Image.fromarray(array)),
        FirstOnly((array, "label")),
    ]
    loaded = load_images(DataSet(items))
    assert [r.status for r in loaded.records] == ["ok"] * len(items)
    assert [r.name for r in loaded.records] == [f"[{i}]" for i in range(len(items))]
    assert len({r.sample_id.split("-")[0] for r in loaded.records}) == 1
    assert torch.equal(loaded.store[0], tensor())

    save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        record = load_images([path]).records[0]
        assert record.status == "ok"
        assert record.sample_id == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()


def test_gray_array_and_caller_keeps_its_objects():
    array = picture()[:, :, 0]
    image = Image.fromarray(picture(1, 600, 800))
    loaded = load_images([array, image], DecodeLimits(short_side=40))
    assert torch.equal(loaded.store[loaded.records[0].index][0], loaded.store[loaded.records[0].index][2])
    assert image.size == (800, 600)


def test_pictures_that_shrink_to_the_same_pixels_stay_two():
    a, b = np.zeros((500, 500, 3), np.uint8), np.zeros((600, 600, 3), np.uint8)
    loaded = load_images([a, b], DecodeLimits(short_side=64))
    ids = {r.sample_id for r in loaded.records}
    assert len(ids) == 2
    assert not any("-" in i for i in ids)


def test_bad_item_in_memory_is_a_record(tmp_path):
    loaded = load_images([np.zeros((4, 4, 3), np.uint8), tmp_path / "gone.jpg", picture()])
    assert [r.status for r in loaded.records] == ["degenerate", "vanished", "ok"]


@pytest.mark.parametrize(
    "item", [3, None, picture().astype(np.float32), picture()[:, :, :2], torch.zeros(3, 9, 9), torch.zeros(9, 9, 3, dtype=torch.uint8), ()]
)
def test_items_of_another_kind_are_refused(item):
    with pytest.raises(UserError, match=r"image \[1\] is .*; give a path"):
        load_images([picture(), item])


@pytest.mark.parametrize("items", ["folder", 3, iter([])])
def test_collections_of_another_kind_are_refused(items):
    with pytest.raises(UserError, match="sequence or data set"):
        load_images(items)


def test_error_of_the_data_set_itself_surfaces():
    class Broken(DataSet):
        def __getitem__(self, i):
            raise KeyError("my own bug")

    with pytest.raises(KeyError, match="my own bug"):
        load_images(Broken([1]))
