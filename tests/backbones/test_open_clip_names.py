"""A few of open_clip's architectures, one of each kind, reduced: our features are open_clip's. The whole table is docs/open_clip_names.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/open_clip_names.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("open_clip_names", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up.
    sys.modules["open_clip_names"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["open_clip_names"]


@pytest.mark.parametrize("name", ["RN50-quickgelu", "PE-Core-T-16-384", "MobileCLIP2-S0", "nllb-clip-base"])
def test_features_are_those_of_open_clip(script, name):
    row = script.look_at(name)
    assert row.reason == ""
    assert row.tensors > 0
    assert max(row.images, row.texts) < 1e-5


def test_coca_is_refused_with_the_reason(script):
    row = script.look_at("coca_ViT-B-32")
    assert row.images is None
    assert row.reason.startswith("CoCa models pool by attention and are not supported")
