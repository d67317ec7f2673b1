"""What the report draws over photographs."""

from __future__ import annotations

import numpy as np
import torch

from finelens import api
from finelens.images.decode import DecodeLimits
from finelens.images.views import crop_regions, crop_views
from finelens.protocol import Preprocess
from finelens.reporting.sections.looked import DIM, dimmed, framed
from finelens.reporting.thumbnails import Photo, Thumbnails, from_folder, square
from tests.reporting.html import Page


def test_regions_are_those_of_the_crops():
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(16, 16, (0.5,) * 3, (0.5,) * 3)
    views = crop_views(image, preprocess, 3, 1, "abc", 4)
    for view, (top, left, side) in zip(views, crop_regions(60, 80, 3, 1, "abc", 4), strict=True):
        assert 0 <= top <= 60 - side
        assert 0 <= left <= 80 - side
        whole = image[:, top : top + side, left : left + side].contiguous()
        assert torch.equal(view, crop_views(whole, preprocess, 0, 0, "x", 1, 1.0, 1.0)[0])


def test_a_mask_dims_what_is_outside():
    view = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    grid = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = dimmed(view, grid, smooth=False)
    assert torch.equal(found[0, :4, :4], view[0, :4, :4])
    assert found[0, 0, 7] == int(200 * DIM)


def test_frames_are_drawn_where_the_region_is():
    image = np.asarray(framed(torch.zeros(3, 176, 176, dtype=torch.uint8), [(40, 60, 80)]))
    assert image.shape == (176, 176, 3)
    yellow = np.argwhere((image == (255, 214, 10)).all(-1))
    assert yellow.min(0).tolist() == [41, 61]
    assert yellow.max(0).tolist() == [118, 138]


def test_thumbnails_are_made_once_and_to_a_limit(photos):
    asked = []

    def photo(name):
        asked.append(name)
        return Photo(lambda: torch.zeros(3, 20, 30, dtype=torch.uint8), name)

    thumbnails = Thumbnails(photo, limit=2)
    assert thumbnails.uri("a") == thumbnails.uri("a") == thumbnails.uri("b")
    assert asked == ["a", "b"]
    assert thumbnails.uri("c") is None
    source = from_folder(photos, DecodeLimits())
    assert source("nowhere.png") is None
    name = next(path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png")))
    assert square(source(name).pixels, 8).shape == (3, 8, 8)


def test_microclip_shows_cut_attention_and_crops(trained_run, plain_run):
    page = Page((trained_run / "report.html").read_text(encoding="utf-8"))
    for what in ("NCut mask", "SOAP attention", "crops that decided"):
        assert page.text.count(what) >= 2
    assert "Where the method looked" not in Page((plain_run / "report.html").read_text(encoding="utf-8")).text


def test_weights_of_crops_are_shares(trained_run):
    task = api.load_run(trained_run).model.task
    size = task.engine.backbone.preprocess.image_size
    draw = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=draw)
    crops = torch.randint(0, 256, (2, 3, 3, size, size), dtype=torch.uint8, generator=draw)
    weights = task.crop_weights(views, crops)
    assert weights.shape == (2, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    rows, columns = task.engine.backbone.grid
    for values in task.attention_maps(views).values():
        assert values.shape == (2, rows * columns)
        assert 0 <= values.min() <= values.max() <= 1
