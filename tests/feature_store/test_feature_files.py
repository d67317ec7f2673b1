"""Feature files of finelens through every verb."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import finelens
from finelens.errors import UserError
from finelens.storage import rows
from finelens.storage.predictions import read_predictions
from finelens.storage.tensors import load_metadata
from tests.toy import CLASSES, QUIET, forwards


def test_file_holds_a_row_of_the_table_for_each_file_and_a_feature_for_each_image(encoded, folder, tiny_vit):
    tensors, metadata = load_file(encoded), load_metadata(encoded)
    records = json.loads(bytes(tensors["records"].numpy()))
    assert [name for name, *_ in records] == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))
    assert [record[1] for record in records].count("ok") == 25
    assert next(record for record in records if record[0] == "broken.jpg")[1] == "corrupt"
    assert tensors["global"].shape == (25, 48)
    assert tensors["cls"].shape == (25, 64)
    assert tensors["patches"].shape == (25, 16, 64)
    assert tensors["crops.global"].shape == (25, 2, 48)
    assert tensors["crops.cls"].shape == (25, 2, 64)
    assert tensors["prototypes"].shape == tensors["descriptions"].shape == (4, 48)
    assert len(tensors["sentences"]) == len(tensors["sentence_class"])
    torch.testing.assert_close(tensors["crops.global"].norm(dim=-1), torch.ones(25, 2))
    assert metadata["backbone"] == f"local:{tiny_vit}"
    # The k-th readable file is row k.
    names = [name for name, status, *_ in records if status == "ok"]
    copies = [names.index(f"{CLASSES[1]}/{name}.png") for name in ("2", "copy")]
    assert torch.equal(tensors["global"][copies[0]], tensors["global"][copies[1]])
    assert not torch.equal(tensors["global"][copies[0]], tensors["global"][0])


def test_same_bytes_again_without_a_forward(encoded, folder, classes, tiny_vit, tmp_path, capsys):
    given = {"backbone": f"local:{tiny_vit}", "classes": classes, "patches": True, "crops": 2}
    for name in ("a", "b"):
        finelens.features(folder, tmp_path / f"{name}.safetensors", **given)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes() == encoded.read_bytes()
    assert "0 views encoded now" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["stata", "gda-em", "transclip", "ot", "zlap", "cupl"])
def test_feature_file_and_photographs_give_the_same_run(encoded, folder, classes, tiny_vit, tmp_path, method):
    verb = finelens.zero_shot if method == "cupl" else finelens.adapt
    verb(folder, classes, tmp_path / "a", method=method, backbone=f"local:{tiny_vit}", console=QUIET)
    verb(encoded, classes, tmp_path / "b", method=method, console=QUIET)
    assert (tmp_path / "a/predictions.csv").read_bytes() == (tmp_path / "b/predictions.csv").read_bytes()
    assert (tmp_path / "a/model/model.safetensors").read_bytes() == (tmp_path / "b/model/model.safetensors").read_bytes()
    assert forwards(tmp_path / "b") == (0, 0)
    # The run knows its tower: it takes photographs as well as features.
    first = finelens.predict(tmp_path / "b", encoded, tmp_path / "c.csv", console=QUIET)
    assert first == finelens.predict(tmp_path / "b", folder, tmp_path / "d.csv", console=QUIET) == read_predictions(tmp_path / "a/predictions.csv")


def test_verbs_on_a_feature_file(run, encoded, folder, classes, tiny_vit, tmp_path):
    code, _, err = run("adapt", encoded, "--classes", classes, "--method", "stata", "--out", tmp_path / "run")
    assert code == 0, err
    assert "images: 26 files, 25 ok, 1 corrupt" in err
    by_folder = run("evaluate", tmp_path / "run", encoded, "--labels", "folders")
    assert by_folder[0] == 0
    assert by_folder[1] == run("evaluate", tmp_path / "run", folder, "--labels", "folders")[1]
    assert "25 images" in by_folder[1]
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{name}/{i}.png,{name}\n" for name in CLASSES for i in range(3)))
    assert "12 images" in run("evaluate", tmp_path / "run", encoded, "--labels", labels)[1]
    assert run("predict", tmp_path / "run", encoded, "--csv", tmp_path / "p.csv")[0] == 0
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "run/predictions.csv").read_bytes()
    assert run("zero-shot", encoded, "--classes", classes, "--out", tmp_path / "zero")[0] == 0
    hints = run("adapt", encoded, "--classes", classes, "--method", "stata", "--hints", labels, "--out", tmp_path / "hinted")
    assert "hints: 12 images, 4 of 4 classes" in hints[2]


def test_classifier_takes_a_feature_file(encoded, folder, classes, tiny_vit, tmp_path):
    finelens.adapt(encoded, classes, tmp_path / "run", method="stata", console=QUIET)
    classifier = finelens.load(tmp_path / "run")
    assert np.allclose(classifier.predict_proba(encoded), classifier.predict_proba(folder), atol=1e-5, equal_nan=True)


def test_embedded_centre_is_fitted_to_the_file(folder, classes, tmp_path):
    finelens.features(folder, tmp_path / "F.safetensors", console=QUIET)
    finelens.adapt(tmp_path / "F.safetensors", classes, tmp_path / "a", method="gda-em", console=QUIET)
    finelens.adapt(folder, classes, tmp_path / "b", method="gda-em", console=QUIET)
    assert (tmp_path / "a/predictions.csv").read_bytes() == (tmp_path / "b/predictions.csv").read_bytes()
    state = load_file(tmp_path / "a/model/model.safetensors")
    cls = load_file(tmp_path / "F.safetensors")["cls"]
    torch.testing.assert_close(state["backbone.centre"], cls.mean(0))


def test_prototypes_of_a_file_replace_the_tower(encoded, classes, tmp_path, tiny_vit):
    finelens.zero_shot(encoded, classes, tmp_path / "a", console=QUIET)
    finelens.zero_shot(encoded, classes, tmp_path / "b", prototypes=encoded, console=QUIET)
    first, second = (read_predictions(tmp_path / name / "predictions.csv") for name in ("a", "b"))
    assert [row.label for row in first] == [row.label for row in second]
    assert [row.probability for row in second if row.probability] == pytest.approx([row.probability for row in first if row.probability], rel=1e-4)
    assert json.loads((tmp_path / "b/config.json").read_text())["backbone"] == "features"
    finelens.predict(tmp_path / "b", encoded, tmp_path / "p.csv", console=QUIET)
    with pytest.raises(
        UserError, match=f"has no image tower: encode photographs with that model .finelens features PHOTOS --backbone local:{tiny_vit}"
    ):
        finelens.predict(tmp_path / "b", encoded.parent / "photos", tmp_path / "q.csv", console=QUIET)


def test_ctrl_c_keeps_what_was_encoded(run, folder, tiny_vit, tmp_path, monkeypatch):
    from finelens.feature_store import encoder
    from finelens.runs import encode as write

    monkeypatch.setattr(encoder, "BATCH", 16)
    put, left = write._put, [1]

    def interrupt(*given):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        put(*given)

    with monkeypatch.context() as patch:
        patch.setattr(write, "_put", interrupt)
        code, _, err = run("features", folder, "--backbone", f"local:{tiny_vit}", "--out", tmp_path / "F.safetensors")
    assert code == 130
    assert "what was encoded is in the cache" in err
    assert list(tmp_path.iterdir()) == []
    code, _, err = run("features", folder, "--backbone", f"local:{tiny_vit}", "--out", tmp_path / "F.safetensors")
    assert code == 0
    assert "0 views encoded now" in err


def test_ctrl_c_promises_nothing_where_nothing_was_encoded(run, folder, tiny_vit, tmp_path, monkeypatch):
    from finelens.runs import encode as write

    def interrupt(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "_kept", 0)
    monkeypatch.setattr(write, "load", interrupt)
    code, _, err = run("features", folder, "--backbone", f"local:{tiny_vit}", "--out", tmp_path / "F.safetensors")
    assert code == 130
    assert err.splitlines()[-1] == "stopped; nothing new is kept yet: the same command begins again"
