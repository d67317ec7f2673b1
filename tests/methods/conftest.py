"""A tiny ViT for the tests of single methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from finelens.engine.engine import Engine
from tests.methods.tiny import tiny_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where :func:`tiny_engine` writes the ViT when it is first asked."""
    return tmp_path_factory.mktemp("tiny") / "vit"


@pytest.fixture
def engine(folder) -> Engine:
    """A fresh engine around it."""
    return tiny_engine(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See :mod:`tests.methods.every`."""
    kind = getattr(metafunc.function, "of_methods", None)
    if kind is not None:
        metafunc.parametrize("method", [method.name for method in metafunc.module.METHODS if kind(method)])
