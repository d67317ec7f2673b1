"""A run that looks at the same photographs again decodes none of them, and answers and shows the same."""

from __future__ import annotations

import shutil

import pytest

from finelens import api
from finelens.core.console import Console
from finelens.feature_store import encoder
from tests.toy import QUIET, write_classes, write_photos

SAME = ("predictions.csv", "signals.json", "map.safetensors", "model/model.safetensors", "model/zero_shot.safetensors")


def pictures_of(run) -> list[str]:
    page = (run / "report.html").read_text(encoding="utf-8")
    return [part.partition('"')[0] for part in page.split("data:image/jpeg;base64,")[1:]]


@pytest.mark.parametrize("method", ["consensus", "zero-shot"])
def test_photographs_that_are_known_are_not_decoded(tmp_path, monkeypatch, decoded, tiny_vit, method):
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "cache"))
    photos, classes = write_photos(tmp_path / "photos"), write_classes(tmp_path / "classes.txt")

    def run(name):
        decoded.clear()
        return api.adapt(photos, classes, tmp_path / name, method=method, backbone=f"local:{tiny_vit}", console=QUIET).path

    first = run("first")
    assert len(decoded) == 24
    again = run("again")
    assert decoded == []
    for name in SAME:
        assert (again / name).read_bytes() == (first / name).read_bytes(), name
    shown = pictures_of(again)
    assert len(shown) > 20
    assert shown == pictures_of(first)
    # Without what is kept everything is decoded, and comes out alike.
    monkeypatch.setenv("FINELENS_CACHE_GB", "0")
    bare = run("bare")
    assert len(decoded) == 24
    assert (bare / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()
    assert pictures_of(bare) == shown


def test_a_method_that_trains_decodes_each_once(tmp_path, decoded, tiny_vit):
    photos, classes = write_photos(tmp_path / "photos", per_class=3), write_classes(tmp_path / "classes.txt")
    options = {"training": {"epochs": 3, "batch_size": 4}}
    for name in ("first", "again"):
        decoded.clear()
        api.adapt(photos, classes, tmp_path / name, method="upl", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
        assert len(decoded) == 12


def test_a_photograph_that_is_replaced_meanwhile_is_read_again(tmp_path, tiny_vit, monkeypatch, capsys):
    """Its content was known, so nothing was decoded until the tower asked for it."""
    photos, names = write_photos(tmp_path / "new since May"), write_classes(tmp_path / "names.txt")
    api.zero_shot(photos, names, tmp_path / "first", backbone=f"local:{tiny_vit}", console=QUIET)
    first, second, *_ = sorted(photos.rglob("*.png"))
    centre = encoder.FeatureEncoder.centre

    def replaced(*given):
        shutil.copy(second, first)
        return centre(*given)

    # The tower has seen none of them.
    monkeypatch.setattr(encoder, "VIEWS_SCHEMA", 99)
    monkeypatch.setattr(encoder.FeatureEncoder, "centre", replaced)
    found = api.zero_shot(photos, names, tmp_path / "second", backbone=f"local:{tiny_vit}", console=Console())
    assert f"{first} has changed while it was used; all are read again" in capsys.readouterr().err
    own = {row.path: row.label for row in found.rows}
    assert own[first.relative_to(photos).as_posix()] == own[second.relative_to(photos).as_posix()]
