"""Where the stored outputs of released code live, and how tests read them."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.decode import decode_model

PROJECT_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = PROJECT_ROOT.parent / "shared" / "golden" / "microclip"


class Golden:
    """Loader of one golden folder: ``manifest.json`` and one safetensors file per group."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._model: dict[str, Tensor] | None = None

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))

    def group(self, name: str) -> dict[str, Any]:
        """Manifest entry of a group: what each tensor is, tolerances, settings."""
        return self.manifest["groups"][name]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """All tensors of a group, e.g. ``03_soap``, freshly loaded."""
        return load_file(self.folder / f"{group}.safetensors")

    def model(self) -> dict[str, Tensor]:
        """Decoded float32 model: ``visual.*`` under open_clip names and ``soap_W_q``, ``soap_W_k``, ``soap_W_v``. Copies, free to change."""
        if self._model is None:
            self._model = decode_model(self.tensors("model"), self.group("model"))
        return {name: tensor.clone() for name, tensor in self._model.items()}


@pytest.fixture(scope="session")
def golden() -> Golden:
    named = os.environ.get("FINELENS_GOLDEN")
    folder = Path(named or DEFAULT_FOLDER)
    if named and not folder.is_dir():
        pytest.fail(f"FINELENS_GOLDEN names {folder}, which is not a folder")
    if not folder.is_dir():
        pytest.skip(f"no golden folder at {folder}: set FINELENS_GOLDEN to the folder with manifest.json")
    return Golden(folder)
