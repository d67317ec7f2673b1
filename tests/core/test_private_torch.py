"""Names that torch keeps to itself stand in one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import finelens
from finelens.core import private_torch

ROOT = Path(finelens.__file__).parent
# What torch's own objects carry, whatever they are called.
OF_OBJECTS = {"_buffers", "_modules", "_non_persistent_buffers_set", "_parameters", "_version", "_grad_fn", "_typed_storage"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    modules = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = f"{origin}.{alias.name}" if origin else alias.name
                if full.split(".")[0] == "torch":
                    modules.add(alias.asname or alias.name)
                    yield from [full] if any(map(private, full.split("."))) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            whole = ast.unparse(node)
            if whole.split(".")[0] in modules or node.attr in OF_OBJECTS:
                yield whole
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
            whole = f"{ast.unparse(node.args[0])}.{node.args[1].value}"
            if private(str(node.args[1].value)) and whole.split(".")[0] in modules:
                yield whole


def test_private_names_of_torch_stand_in_one_module():
    own = Path(private_torch.__file__)
    found = {path.relative_to(ROOT).as_posix(): names for path in ROOT.rglob("*.py") if (names := list(private_names(path.read_text("utf-8"))))}
    assert list(found) == [own.relative_to(ROOT).as_posix()]


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._C import thing",
        "from torch.nn import functional as F\nF._pad",
        "import torch\ntorch.ops.aten._softmax(x)",
        "import torch\nhasattr(torch.cpu, '_is_amx_tile_supported')",
        "module._buffers['centre'] = x",
    ],
)
def test_each_way_to_a_private_name_is_found(line):
    assert list(private_names(line))
    assert not list(private_names("import torch\ntorch.nn.Linear(1, 1).__class__\nself._torch"))
