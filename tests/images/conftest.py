from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finelens.protocol import Preprocess


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def preprocess() -> Preprocess:
    return Preprocess(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
