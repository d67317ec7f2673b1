from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from finelens.storage.cache import ENVIRONMENT_VARIABLE, cache_folder, cached_tensors


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
