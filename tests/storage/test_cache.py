from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from finelens.errors import UserError
from finelens.storage import cache
from finelens.storage.cache import cache_key, cached_tensors, spill_folder
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE, cache_folder
from finelens.storage.rows import RowCache


class Counter:
    """Counts how often the tensors had to be computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16), "empty": torch.empty(0, 4)}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensors"


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_second_call_reads_the_same_bits(folder):
    compute = Counter()
    first, second = cached_tensors(["k"], compute), cached_tensors(["k"], compute)
    assert compute.calls == 1
    assert same(first, second)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("other", [["k", ""], ["kk"], ["k", "k"], []])
def test_every_part_of_the_key_counts(folder, other):
    compute = Counter()
    cached_tensors(["k"], compute)
    cached_tensors(other, compute)
    assert compute.calls == 2


def test_joined_parts_are_not_the_same_key(folder):
    compute = Counter()
    cached_tensors(["ab", "c"], compute)
    cached_tensors(["a", "bc"], compute)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "renamed"])
def test_a_damaged_file_is_computed_again_and_repaired(folder, damage):
    compute = Counter()
    good = cached_tensors(["k"], compute)
    (path,) = folder.iterdir()
    blob = bytearray(path.read_bytes())
    if damage == "flipped":
        blob[-3] ^= 0x40
    elif damage == "truncated":
        del blob[-4:]
    elif damage == "empty":
        blob.clear()
    else:
        cached_tensors(["other"], lambda: {"a": torch.zeros(2, 3)})
        (stranger,) = set(folder.iterdir()) - {path}
        blob = bytearray(stranger.read_bytes())
    path.write_bytes(blob)
    assert same(cached_tensors(["k"], compute), good)
    assert compute.calls == 2
    assert same(cached_tensors(["k"], compute), good)
    assert compute.calls == 2


def test_a_folder_that_cannot_be_written_is_skipped(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(blocked / "below"))
    compute = Counter()
    assert same(cached_tensors(["k"], compute), cached_tensors(["k"], compute))
    assert compute.calls == 2


@pytest.mark.skipif(os.name != "posix", reason="other platforms keep caches elsewhere")
def test_default_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "finelens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "finelens"


def test_without_a_home_folder_nothing_is_kept(monkeypatch):
    """As for a user in a container whom the system does not know."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (ENVIRONMENT_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(UserError, match="no home folder to keep the cache in: set FINELENS_CACHE"):
        cache_folder()
    compute = Counter()
    assert same(cached_tensors(["k"], compute), cached_tensors(["k"], compute))
    assert compute.calls == 2
    assert spill_folder() is None
    assert RowCache(["k"]).folder is None


def test_precision_versions_and_processor_count(folder, monkeypatch):
    """What decides the last bits is part of every key, whoever asks: a text vector of another precision is never served to a clean run."""
    key = cache_key(["k"])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert cache_key(["k"]) != key
    finally:
        torch.set_float32_matmul_precision(before)
    assert cache_key(["k"]) == key
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
        assert cache_key(["k"]) != key
    with monkeypatch.context() as patch:
        patch.setattr(cache, "computing_versions", lambda: ("torch 1.0",))
        assert cache_key(["k"]) != key
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
        assert cache_key(["k"]) != key
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cache_key(["k"]) != key
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert cache_key(["k"]) != key
    finally:
        torch.set_num_threads(threads)
    assert any(line.startswith(f"torch ['{torch.__version__.partition('+')[0]}") for line in cache.computing_versions())


def test_texts_encoded_in_another_precision_are_not_served(folder):
    """The case: prototypes were off by 5e-4 in a clean run after one with ``medium``."""
    from finelens.backbones.embedded import EmbeddedBackbone

    texts = [f"a photo of a bird called {i}" for i in range(3)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        EmbeddedBackbone().encode_text(texts)
    finally:
        torch.set_float32_matmul_precision(before)
    served = EmbeddedBackbone().encode_text(texts)
    shutil.rmtree(folder)
    assert torch.equal(served, EmbeddedBackbone().encode_text(texts))
