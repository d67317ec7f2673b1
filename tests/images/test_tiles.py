"""Grids of tiles: how they are asked for, where they lie and what they are called."""

from __future__ import annotations

from itertools import pairwise

import pytest

from finelens.errors import UserError
from finelens.images.discover import ImageFile
from finelens.images.tiles import OVERLAP, Grid


@pytest.mark.parametrize(
    ("text", "grid"), [("3", Grid(3, 3)), ("3x2", Grid(3, 2)), ("1x4", Grid(1, 4)), ("3x2:0.5", Grid(3, 2, 0.5)), ("2:0", Grid(2, 2, 0.0))]
)
def test_a_grid_is_read(text, grid):
    assert Grid.parse(text) == grid


@pytest.mark.parametrize("text", ["1", "1x1", "0x3", "11", "3x", "x3", "3x2:1", "3x2:1.5", "3:-0.1", "3 x 2", "", "three", "3x2x2"])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(UserError, match=r"--tiles .*expected a grid such as 3"):
        Grid.parse(text)


@pytest.mark.parametrize("text", ["2", "3x2", "4:0.5", "1x3:0", "10:0.9"])
def test_tiles_cover_the_photograph_and_overlap_as_said(text):
    grid = Grid.parse(text)
    boxes = grid.boxes
    assert len(boxes) == grid.columns * grid.rows
    assert (boxes[0].x, boxes[0].y) == (0, 0)
    assert (boxes[-1].x + boxes[-1].width, boxes[-1].y + boxes[-1].height) == (pytest.approx(1), pytest.approx(1))
    for left, right in pairwise(boxes[: grid.columns]):
        assert left.x + left.width - right.x == pytest.approx(grid.overlap * left.width)
    for upper, lower in zip(boxes, boxes[grid.columns :], strict=False):
        assert upper.y + upper.height - lower.y == pytest.approx(grid.overlap * upper.height)


def test_tiles_stand_behind_their_photograph():
    files = (ImageFile("/p/a.jpg", "a.jpg"), ImageFile("/p/b.jpg", "b.jpg"))
    found = Grid(2, 1).of(files)
    assert [file.name for file in found] == ["a.jpg", "a.jpg#1", "a.jpg#2", "b.jpg", "b.jpg#1", "b.jpg#2"]
    assert [file.place for file in found] == ["/p/a.jpg"] * 3 + ["/p/b.jpg"] * 3
    width = 1 / (2 - OVERLAP)
    assert [file.box and file.box.values for file in found[:3]] == [None, (0, 0, width, 1), (1 - width, 0, width, 1)]


def test_a_tile_takes_no_photographs_name():
    with pytest.raises(UserError, match=r"both called a\.jpg#1; rename the photograph"):
        Grid(2, 2).of([ImageFile("/p/a.jpg", "a.jpg"), ImageFile("/p/a.jpg#1", "a.jpg#1")])
