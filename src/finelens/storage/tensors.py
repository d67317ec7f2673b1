"""safetensors files: written atomically, read with every size checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finelens.errors import UserError
from finelens.storage.files import atomic_writer


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically; the same content always gives the same bytes.

    Args:
        path: The file.
        tensors: Any shapes and devices; views and shared storage are written out in full.
        metadata: Texts stored in the header.

    Raises:
        UserError: The file cannot be written; what stood at ``path`` is untouched.
    """
    separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    blob = save(separate, dict(metadata or {}))
    header, data = _split_header(blob)
    with atomic_writer(path) as file:
        file.write(header)
        file.write(data)


def _split_header(blob: bytes) -> tuple[bytes, memoryview]:
    """Header with its keys in a fixed order, and the data. The library writes the metadata in random order, so equal models would differ in bytes."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
    return _header_bytes(ordered), memoryview(blob)[8 + length :]


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class TensorFile:
    """A safetensors file of known shapes that is filled row by row, so that it need not fit into memory.

    Args:
        file: Open for writing and reading, empty.
        shapes: Type (``F32``, ``I64`` or ``U8``) and shape of each tensor.
        metadata: Texts stored in the header.
    """

    _BYTES: ClassVar[dict[str, int]] = {"F32": 4, "I64": 8, "U8": 1}

    def __init__(self, file: BinaryIO, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> None:
        self._file = file
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        end = 0
        for name, (kind, shape) in shapes.items():
            start, end = end, end + self._BYTES[kind] * math.prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        prefix = _header_bytes(header)
        self._tensors = {name: (entry["data_offsets"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        self._start = len(prefix)
        file.write(prefix)
        file.truncate(len(prefix) + end)

    def put(self, name: str, row: int, values: Tensor) -> None:
        """Write rows (B, ...) of a tensor from a row on."""
        (start, end), shape = self._tensors[name]
        self._file.seek(self._start + start + row * ((end - start) // max(1, shape[0])))
        self._file.write(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors that :func:`save_tensors` or any safetensors writer wrote, on the CPU.

    Raises:
        UserError: The file is missing, unreadable, truncated, damaged, or not safetensors. Nothing in the file is ever executed.
    """
    return _read_tensors(path)[0]


def load_both(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and the texts of the header. Raises UserError as :func:`load_tensors` does."""
    return _read_tensors(path)


def load_tensor(path: Path, name: str) -> Tensor:
    """One tensor, memory-mapped. Raises UserError as :func:`load_tensors` does."""
    return _read_tensors(path, only=name)[0][name]


def load_metadata(path: Path) -> dict[str, str]:
    """Texts of a safetensors header. Raises UserError as :func:`load_tensors` does."""
    return _read_tensors(path, names_only=True)[1]


def _read_tensors(path: Path, names_only: bool = False, only: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [] if names_only else file.keys() if only is None else [only]
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except (SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is damaged or not safetensors ({error}); restore it from a copy, or delete it and run again") from error
