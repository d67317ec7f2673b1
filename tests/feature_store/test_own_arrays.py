"""Arrays of any model, with prototypes in the place of texts, through every verb."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

import finelens
from finelens.errors import UserError
from finelens.feature_store.files import read_features
from finelens.feature_store.prototypes import read_prototypes
from finelens.methods.registry import METHODS
from finelens.storage.predictions import read_predictions
from tests.feature_store.arrays import D, N, data, table
from tests.toy import CLASSES, QUIET, hints_file, options_for


@pytest.mark.parametrize("method", ["zero-shot", "stata", "gda-em", "transclip", "zlap"])
def test_own_features_through_every_verb(run, own, classes, method):
    names = own / "names.txt"
    names.write_text("".join(f"{CLASSES[i % 4]}/{i}.jpg\n" for i in range(N)))
    given = ("--classes", classes, "--prototypes", own / "P.npy", "--row-names", names, "--out", own / "run")
    verb = "zero-shot" if method == "zero-shot" else "adapt"
    code, _, err = run(verb, own / "X.npy", *given, "--method", method)
    assert code == 0, err
    assert "logit scale: 100, as CLIP models have it, because no file names one; --logit-scale says otherwise" in err
    code, out, err = run("evaluate", own / "run", own / "X.npy", "--labels", "folders", "--row-names", names)
    assert code == 0, err
    assert float(out.split("%")[0]) > 80
    assert run("predict", own / "run", own / "X.npy", "--csv", own / "p.csv", "--row-names", names)[0] == 0
    assert (own / "p.csv").read_bytes() == (own / "run/predictions.csv").read_bytes()
    assert run("predict", own / "run", own / "X.npy", "--csv", own / "q.csv")[0] == 0
    assert table(own / "q.csv")[3][0] == "row-000003"


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_method_takes_prototypes_or_says_why_not(own, classes, folder, tiny_vit, tmp_path, method):
    finelens.features(folder, own / "P.safetensors", backbone=f"local:{tiny_vit}", classes=classes, console=QUIET)
    places = {own / "X.npy": own / "P.npy", folder: own / "P.safetensors"}
    hints = hints_file(method, tmp_path / "x", folder)
    for photos, prototypes in places.items():
        given = {"backbone": f"local:{tiny_vit}", **hints} if photos is folder else {}
        try:
            rows = finelens.adapt(
                photos, classes, tmp_path / photos.stem, method=method, prototypes=prototypes, options=options_for(method), console=QUIET, **given
            ).rows
        except UserError:
            continue
        assert {row.label for row in rows if row.status == "ok"} <= set(CLASSES)
        assert any(row.status == "ok" for row in rows)


@pytest.mark.parametrize("method", ["lafter", "nola", "text-classifier"])
def test_prototypes_stand_for_the_texts_that_a_method_learns_from(own, classes, folder, tiny_vit, method):
    finelens.features(folder, own / "P.safetensors", backbone=f"local:{tiny_vit}", classes=classes, console=QUIET)
    given = {"backbone": f"local:{tiny_vit}", "prototypes": own / "P.safetensors", "options": options_for(method), "console": QUIET}
    assert len(finelens.adapt(folder, classes, own / "run", method=method, **given).rows) == 26


def test_the_second_encoder_is_checked_beside_prototypes_too(own, classes, folder, tiny_vit):
    finelens.features(folder, own / "P.safetensors", backbone=f"local:{tiny_vit}", classes=classes, console=QUIET)
    given = {"backbone": f"local:{tiny_vit}", "prototypes": own / "P.safetensors", "console": QUIET}
    with pytest.raises(UserError, match=r"nosuch"):
        finelens.adapt(folder, classes, own / "run", method="nola", options={"method": {"second_encoder": "timm:nosuch"}}, **given)


def test_zero_shot_is_the_nearest_prototype(own, classes):
    features, prototypes = data()
    finelens.zero_shot(own / "X.npy", classes, own / "run", prototypes=own / "P.npy", logit_scale=7, calibration=False, console=QUIET)
    x, w = (F.normalize(torch.from_numpy(rows).double(), dim=1) for rows in (features, prototypes))
    expected = (7 * x @ w.T).softmax(1)
    rows = read_predictions(own / "run/predictions.csv")
    assert [row.label for row in rows] == [CLASSES[int(c)] for c in expected.argmax(1)]
    np.testing.assert_allclose([row.probability for row in rows], expected.amax(1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", np.int32])
def test_number_type_and_file_type_do_not_matter(own, classes, dtype):
    features = np.round(10 * data()[0])
    np.save(own / "A.npy", features.astype(dtype))
    save_file({"anything": features.astype(np.float32)}, own / "B.safetensors")
    for name in ("A.npy", "B.safetensors"):
        finelens.zero_shot(own / name, classes, own / f"run-{name}", prototypes=own / "P.npy", console=QUIET)
    assert (own / "run-A.npy/predictions.csv").read_bytes() == (own / "run-B.safetensors/predictions.csv").read_bytes()


def test_scale_of_the_file_is_used(own, classes):
    save_file({"features": data()[0]}, own / "X.safetensors", {"logit_scale": "12.5"})
    finelens.zero_shot(own / "X.safetensors", classes, own / "run", prototypes=own / "P.npy", console=QUIET)
    assert json.loads((own / "run/model/model.json").read_text())["backbone"]["logit_scale"] == 12.5


def test_several_prototypes_a_class(tmp_path):
    _, prototypes = data()
    unit = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    padded = np.zeros((4, 3, D), np.float32)
    padded[:, 0], padded[0, 1] = prototypes, prototypes[1]
    np.save(tmp_path / "P.npy", padded)
    found = read_prototypes(tmp_path / "P.npy", CLASSES).heads
    mean = unit[0] + unit[1]
    np.testing.assert_allclose(found.templates[0], mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(found.templates[1:], unit[1:], rtol=1e-5)
    assert [len(rows) for rows in found.sentences] == [2, 1, 1, 1]
    rows = np.concatenate([prototypes, prototypes[1:2]])
    save_file({"sentences": rows, "sentence_class": np.array([0, 1, 2, 3, 0])}, tmp_path / "P.safetensors")
    again = read_prototypes(tmp_path / "P.safetensors", CLASSES).heads
    torch.testing.assert_close(again.templates, found.templates)
    torch.testing.assert_close(again.weighted, found.weighted)


def test_rows_of_length_zero_are_degenerate_and_duplicates_keep_apart(own, classes):
    features = data()[0]
    features[5] = 0
    features[9] = features[8]
    np.save(own / "X.npy", features)
    rows = finelens.adapt(own / "X.npy", classes, own / "run", method="stata", prototypes=own / "P.npy", console=QUIET).rows
    assert [row.status for row in rows].count("ok") == N - 1
    assert (rows[5].status, rows[5].reason, rows[5].label) == ("degenerate", "the feature has length 0", None)
    assert rows[8].probability == rows[9].probability
    store = read_features(own / "X.npy").store
    assert list(store.ids) == sorted(set(store.ids))


def test_order_of_rows_does_not_matter(own, classes):
    features = data()[0]
    order = np.random.default_rng(1).permutation(N)
    np.save(own / "Y.npy", features[order])
    given = {"method": "stata", "prototypes": own / "P.npy", "console": QUIET}
    first, second = (finelens.adapt(own / name, classes, own / f"run-{name}", **given).rows for name in ("X.npy", "Y.npy"))
    assert [row.top5 for row in second] == [first[i].top5 for i in order]


def test_csv_of_a_run_has_a_row_for_each_row(own, classes):
    finelens.zero_shot(own / "X.npy", classes, own / "run", prototypes=own / "P.npy", console=QUIET)
    with open(own / "run/predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == N


@pytest.mark.parametrize("features", ["image_embeds", "image_features"])
@pytest.mark.parametrize("texts", ["text_embeds", "text_features"])
def test_names_of_other_tools_and_scales_in_tensors(own, classes, features, texts):
    """What a CLIP model of another library returns, saved as it is: one file serves as features and as prototypes."""
    x, w = data()
    save_file({features: x, texts: w, "logit_scale": np.array(23.5, np.float32), "logits_per_image": x @ w.T}, own / "M.safetensors")
    finelens.zero_shot(own / "M.safetensors", classes, own / "m", prototypes=own / "M.safetensors", console=QUIET)
    given = {"prototypes": own / "P.npy", "logit_scale": 23.5, "console": QUIET}
    finelens.zero_shot(own / "X.npy", classes, own / "x", **given)
    assert (own / "m/predictions.csv").read_bytes() == (own / "x/predictions.csv").read_bytes()


def test_memory_order_does_not_matter(own, classes):
    """Our reader: what the file says in Fortran order or as a view is what the array said. Writers differ, see the page."""
    x = data()[0]
    np.save(own / "F.npy", np.asfortranarray(x))
    np.save(own / "V.npy", np.repeat(x, 2, axis=1)[:, ::2])
    save_file({"features": np.ascontiguousarray(np.asfortranarray(x))}, own / "C.safetensors")
    expected = read_features(own / "X.npy").store.features.global_
    for name in ("F.npy", "V.npy", "C.safetensors"):
        assert torch.equal(read_features(own / name).store.features.global_, expected)
