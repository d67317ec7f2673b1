"""``benchmarks/saliency.py``: which side of the cut lies on the objects of the demo photographs, on the embedded tower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finelens.bench.rows.context import Start
from tests.toy import load_script

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "saliency.py")


def test_the_mean_like_side_lies_on_the_objects_and_the_decided_side_does_not(script):
    found = {row["rule"]: row for row in script.objects(Start("embedded", precision="float32").engine)}
    assert found["decided"]["lift"] < -2 * found["decided"]["lift_error"]
    assert found["mean-like"]["lift"] > 2 * found["mean-like"]["lift_error"]
    assert found["no cut: all"]["lift"] == 0
    assert found[script.BEST]["lift"] >= max(found[rule]["lift"] for rule in ("decided", "mean-like", "decided, inverted"))


def test_overlap_counts_by_area(script):
    mask = torch.tensor([[True, True, False, False]])
    found = script.overlap(mask.expand(2, 4), torch.tensor([[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    assert (found["on_object"], found["chance"], found["lift"]) == (0.375, 0.5, -0.125)
    assert found["covers"] == pytest.approx((0.75 + 0) / 2)
    assert found["iou"] == pytest.approx((1.5 / 2.5 + 0) / 2)
    assert found["better_than_chance"] == 0.5


def test_a_box_goes_the_way_of_the_pixels(script, tiny_vit):
    from finelens.backbones.registry import load_backbone

    backbone = load_backbone(f"local:{tiny_vit}")
    covered = script._covered(torch.zeros(3, 100, 200, dtype=torch.uint8), [(0.5, 0.0, 1.0, 1.0)], backbone.preprocess, (4, 4)).view(4, 4)
    assert covered[:, :2].max() < 0.1
    assert covered[:, 2:].min() > 0.9


def test_the_table_of_what_is_kept_reads(script):
    rows = [json.loads(line) for line in (ROOT / "results/saliency.jsonl").read_text().splitlines()]
    text = script.table(rows)
    assert all(f"| {rule} |" in text for rule in [*script.RULES, script.BEST])
