"""Crops in a feature file: methods that look at crops answer from them as from the photographs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import finelens
from finelens import api
from finelens.errors import UserError
from finelens.runs.encode import features
from finelens.storage.predictions import read_predictions
from tests.toy import QUIET, write_classes, write_photos

WCA = {"method": {"crops": 5}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_vit):
    place = tmp_path_factory.mktemp("crops")
    write_photos(place / "photos")
    first = next(path for path in sorted((place / "photos").rglob("*.png")))
    shutil.copy(first, first.with_name("copy.png"))
    write_classes(place / "classes.txt")
    features(place / "photos", place / "F.safetensors", backbone=f"local:{tiny_vit}", crops=6, console=QUIET)
    return place


def adapt(place, source, out, tiny_vit, **given):
    given = {"method": "wca", "backbone": f"local:{tiny_vit}", "options": WCA} | given
    return api.adapt(place / source, place / "classes.txt", out, **given, console=QUIET)


def test_answers_are_those_of_the_photographs(place, tiny_vit, tmp_path):
    for source in ("photos", "F.safetensors"):
        adapt(place, source, tmp_path / source, tiny_vit)
    ours, theirs = (read_predictions(tmp_path / source / "predictions.csv") for source in ("F.safetensors", "photos"))
    assert [(row.path, row.label) for row in ours] == [(row.path, row.label) for row in theirs]
    assert [row.probability for row in ours] == pytest.approx([row.probability for row in theirs], abs=1e-5)
    model = finelens.load(tmp_path / "photos")
    paths = [str(place / "photos" / row.path) for row in ours]
    np.testing.assert_allclose(model.predict_proba(place / "F.safetensors"), model.predict_proba(paths), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"options": {"method": {"crops": 7}}},
            r"looks at 7 crops .*F\.safetensors holds 6; .*--crops 7 .*method\.crops=6 looks",
        ),
        ({"method": "mta", "options": {}}, "method mta looks at random resized crops, which feature files do not hold"),
    ],
)
def test_other_views_than_the_stored_ones_are_refused(place, tiny_vit, tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        adapt(place, "F.safetensors", tmp_path / "run", tiny_vit, **given)
    assert not (tmp_path / "run").exists()


def test_crops_of_another_seed_and_files_without_crops_are_refused(place, tiny_vit, tmp_path):
    adapt(place, "photos", tmp_path / "run", tiny_vit)
    for name, given, said in (("seed", {"crops": 6, "seed": 3}, "were drawn otherwise"), ("none", {}, "and the features are of whole ones")):
        features(place / "photos", tmp_path / f"{name}.safetensors", backbone=f"local:{tiny_vit}", **given, console=QUIET)
        with pytest.raises(UserError, match=said):
            finelens.load(tmp_path / "run").predict_proba(tmp_path / f"{name}.safetensors")


def test_crops_that_are_damaged_or_do_not_fit_are_refused(place, tiny_vit, tmp_path):
    with safe_open(place / "F.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping

    def fails(changed: dict[str, torch.Tensor], told: dict[str, str] | None = None) -> str:
        save_file(tensors | changed, tmp_path / "broken.safetensors", metadata | (told or {}))
        with pytest.raises(UserError) as caught:
            api.adapt(
                tmp_path / "broken.safetensors", place / "classes.txt", tmp_path / "run", method="wca", options=WCA, overwrite=True, console=QUIET
            )
        return str(caught.value)

    crops = tensors["crops.cls"].clone()
    crops[3, 2, 1] = float("nan")
    assert "values that are not finite" in fails({"crops.cls": crops})
    assert "do not fit together" in fails({"crops.cls": crops[:, :4].clone()})
    assert "is damaged" in fails({}, {"crops": json.dumps({"number": 6})})
