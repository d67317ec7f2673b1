from __future__ import annotations

import json

import numpy as np
import pytest

from finelens.bench.rows.context import Context
from finelens.bench.rows.origin import command
from finelens.bench.sets.corrupted import split_corruption
from finelens.bench.sets.find import find_data
from finelens.cli import main
from finelens.images.corruptions import Corruption
from finelens.images.decode import DecodeLimits
from finelens.images.store import load_images
from tests.bench.world import key, row
from tests.toy import QUIET


def test_the_test_part_alone_is_corrupted(toy_set, context):
    name, read = find_data(f"{toy_set}@gaussian_noise:5", None)
    data = read()
    assert name == "toy@gaussian_noise:5"
    clean = find_data(str(toy_set), None)[1]()
    assert data.train.images == clean.train.images
    assert data.test.names() == clean.test.names()
    assert data.test.labels.read().tolist() == clean.test.labels.read().tolist()
    stored = load_images(data.test.images, DecodeLimits()).store
    assert np.std(np.asarray(stored[0], dtype=float)) > 60
    noisy = row(Context(data, context.start, QUIET), "zero-shot")
    assert noisy.status == "ok", noisy.reason
    assert noisy.source["checksum"] != context.source["checksum"]
    assert noisy.split["test"] == 12
    said, true = noisy.measures["estimated_accuracy"], noisy.measures["accuracy"]
    assert noisy.measures["estimate_error"] == abs(said - true)


def test_what_stands_behind_an_at_may_belong_to_the_name():
    assert split_corruption("pets37@fog:3") == ("pets37", Corruption("fog", 3))
    assert split_corruption("me@home") == ("me@home", None)
    assert split_corruption("a@b:c") == ("a@b:c", None)
    assert split_corruption("pets37@fog:9") == ("pets37@fog:9", None)


def test_the_command_of_a_row_says_it(toy_set, tiny_vit, tmp_path):
    out = tmp_path / "results.jsonl"
    arguments = ["bench", "--data", toy_set, "--corrupt", "contrast:2", "--methods", "zero-shot", "--backbone", f"local:{tiny_vit}", "--out", out]
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert not stop.value.code
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert (line["status"], line["data"]) == ("ok", "toy@contrast:2")
    assert "--data toy@contrast:2" in line["command"]
    assert "--data pets37@fog:3" in command(key(data="pets37@fog:3"))
