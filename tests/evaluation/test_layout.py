"""Places on the map: neighbours stay neighbours, places repeat, and files that do not fit are left alone."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from finelens.evaluation import layout as module
from finelens.evaluation.layout import PCA, TSNE, lay_out, read_layout, write_layout


def clouds(count: int, kinds: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(kinds, 16, generator=draw)
    return F.normalize(means[torch.arange(count) % kinds] + 0.2 * torch.randn(count, 16, generator=draw), dim=1)


def same_kind(xy: torch.Tensor, kinds: int = 4) -> float:
    """Share of the photographs whose nearest on the map is of their kind."""
    apart = torch.cdist(xy, xy).fill_diagonal_(torch.inf)
    kind = torch.arange(len(xy)) % kinds
    return (kind[apart.argmin(1)] == kind).float().mean().item()


@pytest.mark.parametrize("marks", [200, 100])
def test_what_looks_alike_lies_together_and_again(monkeypatch, marks):
    pytest.importorskip("openTSNE")
    monkeypatch.setattr(module, "LANDMARKS", marks)
    x = clouds(120)
    found, again = lay_out(x), lay_out(x.half())
    assert found.how == TSNE
    assert same_kind(found.xy) > 0.95
    assert found.xy.min() >= 0
    assert found.xy.max() <= 1
    monkeypatch.setattr(module, "cached_tensors", lambda key, compute: compute())
    assert torch.equal(lay_out(x).xy, found.xy)
    assert same_kind(again.xy) > 0.95
    kind = torch.arange(120) % 4
    assert (kind[found.nearest.long()] == kind[:, None]).all()
    if marks == 200:
        assert not (found.nearest == torch.arange(120)[:, None]).any()


def test_the_same_photographs_are_laid_out_once(monkeypatch):
    pytest.importorskip("openTSNE")
    x = clouds(120)
    found = lay_out(x)
    monkeypatch.setattr(module, "_tsne", lambda bank: pytest.fail("laid out again"))
    assert torch.equal(lay_out(x).xy, found.xy)
    monkeypatch.setattr(module, "_tsne", lambda bank: torch.zeros(len(bank), 2))
    assert not torch.equal(lay_out(clouds(121)[:120] + 0.01).xy, found.xy)


def test_without_the_library_it_is_a_plane_of_two_directions(monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    assert lay_out(clouds(120)).how == PCA
    few = lay_out(clouds(8))
    assert few.how == PCA
    assert few.xy.isfinite().all()
    assert lay_out(clouds(2)) is None
    assert lay_out(clouds(1).expand(5, 16)).xy.isfinite().all()


def test_the_odd_one_is_least_like_the_others():
    x = clouds(40)
    x[7] = -x.mean(0) / x.mean(0).norm()
    assert lay_out(x).likeness.argmin() == 7


def test_files(tmp_path):
    found = lay_out(clouds(8))
    write_layout(tmp_path / "map.safetensors", found)
    back = read_layout(tmp_path / "map.safetensors", 8)
    assert torch.equal(back.xy, found.xy)
    assert back.how == PCA
    assert read_layout(tmp_path / "map.safetensors", 9) is None
    assert read_layout(tmp_path / "none", 8) is None
    (tmp_path / "map.safetensors").write_bytes(b"damaged")
    assert read_layout(tmp_path / "map.safetensors", 8) is None
