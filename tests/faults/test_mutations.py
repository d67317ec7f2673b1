"""Damaged headers: whatever a file of a format that is read becomes, the answer is a status or pixels, and sound files stay right afterwards."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from finelens.core.schemas import STATUSES
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode_bytes

from .mutations import OTHER_PIXELS, SOUND, mutated, picture, recipes, sound

CORPUS = json.loads((Path(__file__).parent / "corpus.json").read_text())
COUNT = int(os.environ.get("FINELENS_FUZZ", "30"))
LIMITS = DecodeLimits(max_pixels=4_000_000)


def check(data: bytes) -> None:
    result = decode_bytes(data, "a.jpg", LIMITS)
    if isinstance(result, Failure):
        assert result.status in STATUSES
        assert result.reason
        assert "\n" not in result.reason
    else:
        assert result.pixels.shape[0] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOUND)
def test_mutations_of_every_format_are_a_status_or_pixels(kind):
    data = sound(kind)
    if data is None:
        pytest.skip("cannot be written here")
    before = decode_bytes(data, "a.jpg", LIMITS)
    assert isinstance(before, DecodedImage), before
    if kind not in OTHER_PIXELS:
        assert np.abs(before.pixels.permute(1, 2, 0).numpy() - picture().astype(int)).mean() < 4
    for recipe in CORPUS.get(kind, []):
        check(mutated(data, [(place, value) for place, value in recipe]))
    for recipe in islice(recipes(data, np.random.default_rng(0)), COUNT):
        check(mutated(data, recipe))
    after = decode_bytes(data, "a.jpg", LIMITS)
    assert isinstance(after, DecodedImage)
    assert (after.pixels == before.pixels).all()
