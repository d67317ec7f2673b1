from __future__ import annotations

from pathlib import Path

import pytest

from finelens.bench.rows.context import Context
from tests.bench.world import make_context, write_set
from tests.conftest import own_cache


@pytest.fixture(scope="package", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINELENS_CACHE", own_cache(tmp_path_factory))
        yield


@pytest.fixture(scope="package")
def toy_set(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="package")
def context(toy_set, tiny_vit) -> Context:
    return make_context(toy_set, tiny_vit)
