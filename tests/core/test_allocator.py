from __future__ import annotations

import os
import subprocess
import sys

import pytest

from finelens.core import allocator

# Activations of a chunk of images: made, and given up one after another.
LAYERS = """
import resource, sys, torch
from finelens.core.allocator import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else False
def layers():
    x = torch.ones(5 << 20, dtype=torch.uint8)
    for _ in range(20):
        x = x + 1
        y = torch.cat([x, x, x])
        z = y + 1
for _ in range(3):
    layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    layers()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str, **variables: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if name not in allocator._CHOSEN}
    environment = clean | {"OMP_NUM_THREADS": "1"} | variables
    said = subprocess.run([sys.executable, "-c", LAYERS, *words], env=environment, capture_output=True, text=True, check=True).stdout
    kept, count = said.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_that_was_freed_is_not_cleared_again():
    kept, count = faults("keep")
    if not kept:
        pytest.skip("another C library")
    assert count < 1000
    assert count * 5 < faults()[1]


def test_what_the_user_set_is_left_alone():
    assert faults("keep", MALLOC_TOP_PAD_="0")[0] is False


def test_another_c_library_is_no_error(monkeypatch):
    for name in allocator._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory.__wrapped__() is False
