"""Results that cost more to compute than to read, kept in the user's cache folder under the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from finelens.errors import UserError
from finelens.storage.cache_place import TENSORS, cache_folder
from finelens.storage.tensors import load_metadata, load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

# Part of every key: raise it when the meaning of stored tensors changes.
CACHE_SCHEMA = 1
# What computes what is cached: another version may round otherwise.
_COMPUTED_BY = ("torch", "torchvision", "pillow", "transformers", "tokenizers", "open_clip_torch", "timm")
# By these the libraries below torch choose other instructions.
_ARITHMETIC_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def cache_key(parts: Sequence[str]) -> str:
    """Hash of everything a result depends on: what the caller names, and what decides the last bits of any arithmetic here and now."""
    return hashlib.sha256(json.dumps([CACHE_SCHEMA, *_arithmetic(), *parts]).encode()).hexdigest()


def _arithmetic() -> list[str]:
    """Versions of what computes, the processor, its threads, and every switch by which float32 may be computed in something less."""
    import torch

    # Instruction sets, name and cache sizes; torch before 2.9 tells the first only, and that below.
    processor = [f"{name}={value}" for name, value in sorted(getattr(torch.cpu, "get_capabilities", dict)().items())]
    switches = [str(torch.get_default_dtype()), str(torch.is_autocast_enabled("cpu"))]
    for backend in (torch.backends.mkldnn, torch.backends.cuda, torch.backends.cudnn):
        for part in (backend, *(getattr(backend, name, backend) for name in ("matmul", "conv", "rnn"))):
            # A part without a precision of its own has that of the whole; torch before 2.9 knows the flag alone.
            chosen = [getattr(level, "fp32_precision", "none") for level in (part, backend, torch.backends)]
            precision = next((name for name in chosen if name != "none"), "ieee")
            switches.append(f"{precision} {getattr(part, 'allow_tf32', None)} {getattr(part, 'enabled', None)}")
    switches.append(torch.get_float32_matmul_precision())
    environment = [f"{name}={os.environ[name]}" for name in _ARITHMETIC_VARIABLES if name in os.environ]
    place = [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return [*computing_versions(), *place, *processor, *switches, *environment]


def computing_versions() -> tuple[str, ...]:
    """Name and versions of what computes what is cached."""
    return installed_versions(_COMPUTED_BY)


@cache
def installed_versions(names: tuple[str, ...]) -> tuple[str, ...]:
    """Name and versions of each distribution."""
    installed = {name: [found.version for found in distributions(name=name)] for name in names}
    return tuple(f"{name} {found}" for name, found in installed.items())


def cached_tensors(key_parts: Sequence[str], compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache, or computed and put there.

    A file that is missing, damaged or not what its name says is computed again and replaced. A cache that cannot be written is no error: the result
    is returned all the same.

    Args:
        key_parts: Everything that the result depends on: digests of weights, texts, settings. Their order counts, never a name or a date.
        compute: Gives the tensors, which are read back bit for bit.

    Returns:
        The tensors by name, on the CPU.
    """
    key = cache_key(key_parts)
    # A home folder that cannot be found is a cache that cannot be used.
    try:
        path = cache_folder() / TENSORS / f"{key}.safetensors"
    except UserError:
        return dict(compute())
    stored = _read(path, key)
    if stored is not None:
        return stored
    tensors = dict(compute())
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, {"key": key, "content": _digest(tensors)})
    return tensors


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    try:
        metadata, tensors = load_metadata(path), load_tensors(path)
        return tensors if metadata == {"key": key, "content": _digest(tensors)} else None
    except UserError:
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Hash of names and values of tensors."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def spill_folder() -> Path | None:
    """Where pixels beyond the memory budget go; None keeps them in memory where the cache cannot be written."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):
        return None
    return folder if os.access(folder, os.W_OK) else None
