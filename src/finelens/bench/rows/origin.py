"""What makes a row again: the code and versions that computed it, and its command."""

from __future__ import annotations

import hashlib
import platform
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finelens.bench.rows.results import Key
from finelens.core.schemas import VERSION
from finelens.methods.registry import bringing_package, find_method

DEVICE = "cpu"
PACKAGE = Path(__file__).parents[2]


def versions(method: str) -> dict[str, Any]:
    """What computes rows of a method in this process; of a method of another package also that package and a hash of its code."""
    package = bringing_package(method)
    return _own_versions() | ({} if package is None else {"package": package, "package_code": _code_of(find_method(method).source)})


def _code_of(source: str) -> str:
    """Short hash of the package, or the one file, that a ``module:Class`` lies in."""
    found = find_spec(source.partition(":")[0].partition(".")[0])
    if found is None or not (found.submodule_search_locations or found.origin):
        return "unknown"
    if found.submodule_search_locations:
        return code_digest(Path(next(iter(found.submodule_search_locations))))
    return hashlib.sha256(Path(str(found.origin)).read_bytes()).hexdigest()[:16]


def _own_versions() -> dict[str, Any]:
    return {
        "finelens": VERSION,
        "code": code_digest(PACKAGE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
    }


@cache
def code_digest(package: Path) -> str:
    """Short hash of the files of a package, which tells two states of the code with the same version apart.

    It is taken once in a process: what a file holds later is not what runs.
    """
    total = hashlib.sha256()
    files = {path.relative_to(package): path for path in package.rglob("*") if path.is_file()}
    for name, file in sorted(files.items()):
        # Compiled code, and what editors leave behind.
        if not any(part.startswith((".", "__pycache__")) for part in name.parts):
            content = file.read_bytes()
            total.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


def command(key: Key, device: str = DEVICE) -> str:
    """The command that makes one row, where ``--data-root`` or ``FINELENS_DATA`` is the folder of data sets."""
    parts = ["finelens", "bench", "--data", key.data, "--protocols", key.protocol, "--methods", key.method, "--seeds", str(key.seed)]
    parts += ["--backbone", key.backbone, "--profile", key.profile]
    for option in key.options:
        parts += ["--set", option]
    parts += [] if device == DEVICE else ["--device", device]
    return shlex.join([*parts, "--out", "results.jsonl"])
