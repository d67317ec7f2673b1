"""Feature files through every verb: those of finelens, and arrays of any model."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from safetensors.torch import load_file

import finelens
from finelens.cli import main
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.feature_store.files import read_features
from finelens.feature_store.prototypes import read_prototypes
from finelens.methods.registry import METHODS
from finelens.storage.predictions import read_predictions
from finelens.storage.tensors import load_metadata
from tests.toy import CLASSES, QUIET, forwards, hints_file, options_for, write_photos

N, D = 40, 12


@pytest.fixture
def run(capsys):
    """``run("verb", ...)`` gives exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def fails(run):
    """The one line of a command that must fail with exit code 2."""

    def call(*arguments: object) -> str:
        code, _, err = run(*arguments)
        last = err.strip().splitlines()[-1]
        assert code == 2
        assert last.startswith("finelens: ")
        return last

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 pictures, a broken one and an exact duplicate."""
    photos = write_photos(tmp_path_factory.mktemp("photos") / "photos")
    (photos / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(photos / CLASSES[1] / "2.png", photos / CLASSES[1] / "copy.png")
    return photos


@pytest.fixture(scope="module")
def encoded(folder, classes, tiny_vit) -> Path:
    """Feature file of ``folder``."""
    out = folder.parent / "F.safetensors"
    finelens.features(folder, out, backbone=f"local:{tiny_vit}", classes=classes, patches=True, crops=2, console=QUIET)
    return out


def data(classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Separable features (N, D) and prototypes (C, D) of an unknown model, rows of any length."""
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(classes, D))
    features = prototypes[np.arange(N) % classes] + 0.5 * rng.normal(size=(N, D))
    return (3 * features).astype(np.float32), prototypes.astype(np.float32)


@pytest.fixture
def own(tmp_path, classes) -> Path:
    """Folder with ``X.npy`` and ``P.npy``."""
    features, prototypes = data()
    np.save(tmp_path / "X.npy", features)
    np.save(tmp_path / "P.npy", prototypes)
    return tmp_path


def table(path: Path) -> list[tuple[str, str | None]]:
    return [(row.path, row.label) for row in read_predictions(path)]


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


def bad(tmp_path: Path, kind: str) -> Path:
    features, path = data()[0], tmp_path / "bad.npy"
    if kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "raw pickle":
        path.write_bytes(pickle.dumps(features))
    elif kind == "truncated":
        np.save(path, features)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "nan":
        features[3, 2] = np.nan
        np.save(path, features)
    elif kind == "overflow":
        np.save(path, np.full((3, D), 1e300))
    elif kind == "zeros":
        np.save(path, 0 * features)
    elif kind == "two matrices":
        path = tmp_path / "bad.safetensors"
        save_file({"a": features, "b": features}, path)
    elif kind == "no safetensors":
        path = tmp_path / "bad.safetensors"
        path.write_bytes(b"x" * 100)
    else:
        np.save(
            path, {"vector": features[0], "cube": features[None], "no rows": features[:0], "text": np.array([["a"]]), "complex": features + 1j}[kind]
        )
    return path


BAD = {
    "pickle": "holds pickled objects, which are never read",
    "raw pickle": "holds pickled objects, which are never read",
    "truncated": "is damaged",
    "empty file": "is damaged",
    "nan": "1 row of the features with NaN or infinity, first row 3; leave",
    "overflow": "3 rows of the features with NaN or infinity, first row 0",
    "zeros": "all 40 rows have length 0",
    "two matrices": "cannot tell which tensor holds the features (found: a, b); call it global",
    "no safetensors": "is damaged or not safetensors",
    "vector": "expected features of shape (rows, columns), got (12,)",
    "cube": "expected features of shape (rows, columns), got (1, 40, 12)",
    "no rows": "expected features of shape (rows, columns), got (0, 12)",
    "text": "expected an array of real numbers, got <U1",
    "complex": "expected an array of real numbers, got complex64",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_features_are_refused_in_one_line(fails, own, classes, kind):
    path = bad(own, kind)
    said = fails("zero-shot", path, "--classes", classes, "--prototypes", own / "P.npy", "--out", own / "run")
    assert str(path) in said
    assert BAD[kind] in said
    assert not (own / "run").exists()


def test_bad_prototypes_are_refused_in_one_line(fails, own, classes):
    prototypes = data()[1]

    def refused(rows: np.ndarray, **tensors: np.ndarray) -> str:
        if tensors:
            save_file({"prototypes": rows, **tensors}, own / "Q.safetensors")
        else:
            np.save(own / "Q.npy", rows)
        return fails(
            "zero-shot", own / "X.npy", "--classes", classes, "--out", own / "r", "--prototypes", own / ("Q.safetensors" if tensors else "Q.npy")
        )

    assert "3 prototypes for 4 classes" in refused(prototypes[:3])
    assert "prototypes have 11 columns" in refused(prototypes[:, :11].copy())
    assert "class 'blue disc' has length 0" in refused(prototypes * np.array([[1], [1], [0], [1]], np.float32))
    assert "prototypes with NaN or infinity, first row 1" in refused(prototypes * np.array([[1], [np.nan], [1], [1]], np.float32))
    assert "sentence_class must give the class" in refused(prototypes, sentences=prototypes, sentence_class=np.array([0, 1, 2, 7]))
    assert "descriptions of shape (2, 12)" in refused(prototypes, descriptions=prototypes[:2].copy())


def test_what_does_not_fit_together_is_refused_in_one_line(fails, own, classes, encoded, folder, tiny_vit, tmp_path):
    common = ("--classes", classes, "--out", tmp_path / "run")
    own_prototypes = ("--prototypes", own / "P.npy")
    assert "class prototypes with --prototypes FILE" in fails("zero-shot", own / "X.npy", *common)
    assert "needs photographs" in fails("adapt", encoded, *common, "--method", "microclip")
    said = fails("adapt", own / "X.npy", *common, *own_prototypes, "--method", "wca")
    assert "methods that take features: zero-shot, cupl" in said
    assert "stata" in said
    assert "microclip" not in said.split("methods that take")[1]
    assert "does not exist" in fails("adapt", tmp_path / "none.npy", *common, "--method", "stata")
    (tmp_path / "X.npz").touch()
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({CLASSES[0]: ["a red stripe"]}))
    assert "not from .npz" in fails("adapt", tmp_path / "X.npz", *common, "--method", "stata")
    assert "--descriptions has no effect beside" in fails("zero-shot", own / "X.npy", *common, *own_prototypes, "--descriptions", texts)
    assert "--logit-scale must be above 0" in fails("zero-shot", own / "X.npy", *common, *own_prototypes, "--logit-scale", "-1")
    assert "--logit-scale has no effect: backbone" in fails("zero-shot", encoded, *common, "--logit-scale", "5")
    assert "feature files only" in fails("zero-shot", folder, *common, "--row-names", classes)
    assert "has 4 lines for 40 rows" in fails("zero-shot", own / "X.npy", *common, *own_prototypes, "--row-names", classes)
    assert "names its rows itself" in fails("zero-shot", encoded, *common, "--row-names", classes)
    assert "--strict looks into photographs" in fails("zero-shot", encoded, *common, "--strict")
    assert "no text tower" in fails("zero-shot", own / "X.npy", *common, *own_prototypes, "--method", "waffle")
    other = encoded.parent / "other"
    if not other.exists():
        from tests.backbones.checkpoints import write_tiny_vit

        write_tiny_vit(other, seed=5)
    assert "was made with other weights" in fails("zero-shot", encoded, *common, "--backbone", f"local:{other}")


def test_predictions_that_cannot_be_made_are_refused_in_one_line(fails, own, classes, encoded, folder, tiny_vit, tmp_path):
    finelens.zero_shot(folder, classes, tmp_path / "tower", backbone=f"local:{tiny_vit}", console=QUIET)
    finelens.zero_shot(own / "X.npy", classes, tmp_path / "own", prototypes=own / "P.npy", console=QUIET)
    assert "holds features of another model" in fails("predict", tmp_path / "tower", own / "X.npy", "--csv", tmp_path / "p.csv")
    assert "has features of 48 columns, the run was made on 12" in fails("predict", tmp_path / "own", encoded, "--csv", tmp_path / "p.csv")
    assert "has no image tower" in fails("predict", tmp_path / "own", folder, "--csv", tmp_path / "p.csv")
    assert "lie in no folders" in fails("evaluate", tmp_path / "own", own / "X.npy", "--labels", "folders")
    options = {"training": {"epochs": 1, "batch_size": 8}}
    finelens.adapt(folder, classes, tmp_path / "trained", method="dpa", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    assert "method dpa needs photographs" in fails("predict", tmp_path / "trained", encoded, "--csv", tmp_path / "p.csv")


def test_files_that_features_must_not_write_are_refused(fails, run, encoded, folder, tiny_vit, tmp_path):
    given = (folder, "--backbone", f"local:{tiny_vit}", "--out")
    assert "features are written as .safetensors" in fails("features", *given, tmp_path / "F.npy")
    assert "does not exist; make that folder first" in fails("features", *given, tmp_path / "no" / "F.safetensors")
    assert "lies inside the photographs" in fails("features", *given, folder / "F.safetensors")
    (tmp_path / "F.safetensors").mkdir()
    assert "is a folder" in fails("features", *given, tmp_path / "F.safetensors")
    shutil.copy(encoded, tmp_path / "E.safetensors")
    assert "exists; give another name, or --overwrite" in fails("features", *given, tmp_path / "E.safetensors")
    assert run("features", *given, tmp_path / "E.safetensors", "--overwrite")[0] == 0
    save_file({"a": np.zeros(3)}, tmp_path / "G.safetensors")
    assert "was not written by finelens features" in fails("features", *given, tmp_path / "G.safetensors", "--overwrite")
    assert "give --classes FILE as well" in fails("features", *given, tmp_path / "H.safetensors", "--descriptions", tmp_path)


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


def test_damaged_table_is_refused(encoded, tmp_path):
    path = tmp_path / "F.safetensors"
    raw = encoded.read_bytes()
    path.write_bytes(raw.replace(b'"corrupt"', b'"perfect"'))
    with pytest.raises(UserError, match="is damaged"):
        read_features(path)
    path.write_bytes(raw.replace(f'"schema_version":"{SCHEMA_VERSION}"'.encode(), b'"schema_version":"9"'))
    with pytest.raises(UserError, match="written by a newer finelens"):
        read_features(path)


def test_resumed_run_on_features_refuses_other_features(own, classes):
    from finelens.runs.folder import RunFolder
    from finelens.runs.inputs import read_inputs

    finelens.adapt(own / "X.npy", classes, own / "run", method="stata", prototypes=own / "P.npy", console=QUIET)
    expected = (own / "run/predictions.csv").read_bytes()
    lines = (own / "run/events.jsonl").read_text().splitlines(keepends=True)
    (own / "run/events.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    assert finelens.resume(own / "run", console=QUIET) is not None
    assert (own / "run/predictions.csv").read_bytes() == expected
    before = read_inputs(RunFolder.open(own / "run", lock=False).config, QUIET).digests
    np.save(own / "X.npy", 2 + data()[0])
    np.save(own / "P.npy", 2 + data()[1])
    after = read_inputs(RunFolder.open(own / "run", lock=False).config, QUIET).digests
    assert before["images"] != after["images"]
    assert before["classes"] != after["classes"]


def test_csv_of_a_run_has_a_row_for_each_row(own, classes):
    finelens.zero_shot(own / "X.npy", classes, own / "run", prototypes=own / "P.npy", console=QUIET)
    with open(own / "run/predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == N


# Numbers of others that look like features and are not: read, warned of or refused, never used in silence.


def warnings_of(run, *arguments: object) -> str:
    code, _, err = run(*arguments)
    assert code == 0
    return " ".join(line for line in err.splitlines() if line.startswith("warning:"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float32])
def test_whole_numbers_are_doubted(own, classes, run, dtype):
    features = data()[0]
    low, high = features.min(0), features.max(0)
    np.save(own / "Q.npy", ((features - low) / (high - low) * 100).round().astype(dtype))
    base = ["--prototypes", own / "P.npy", "--classes", classes]
    assert "whole numbers" in (said := warnings_of(run, "zero-shot", own / "Q.npy", *base, "--out", own / "q"))
    assert "Q.npy" in said
    assert "whole numbers" not in warnings_of(run, "zero-shot", own / "X.npy", *base, "--out", own / "x")
    # A clean run does not make later rows clean.
    assert "Q.npy" in warnings_of(run, "predict", own / "x", own / "Q.npy", "--csv", own / "q.csv")
    np.save(own / "W.npy", (20 * data()[1]).round().astype(dtype if dtype is not np.uint8 else np.int16))
    assert "W.npy: all prototypes are whole" in warnings_of(
        run, "zero-shot", own / "X.npy", "--prototypes", own / "W.npy", "--classes", classes, "--out", own / "w"
    )


def test_transposed_prototypes_are_refused_or_doubted(own, classes, run, fails, tmp_path):
    features, prototypes = data()
    np.save(own / "T.npy", np.ascontiguousarray(prototypes.T))
    base = ["zero-shot", own / "X.npy", "--classes", classes, "--out", own / "t", "--prototypes"]
    assert "12 prototypes for 4 classes; give one each, in order (they look transposed" in fails(*base, own / "T.npy")
    # As many classes as columns: both fit.
    features, prototypes = data(D)
    np.save(own / "X.npy", features)
    np.save(own / "S.npy", prototypes)
    np.save(own / "ST.npy", np.ascontiguousarray(prototypes.T))
    (tmp_path / "twelve.txt").write_text("\n".join(f"class {i}" for i in range(D)))
    base[3] = tmp_path / "twelve.txt"
    assert "transposed" in warnings_of(run, *base, own / "ST.npy")
    assert "transposed" not in warnings_of(run, *base, own / "S.npy", "--overwrite")


def test_transposed_prototypes_beside_photographs_are_doubted(folder, tiny_vit, run, tmp_path):
    """As many classes as columns, so that both readings fit: lengths and the photographs tell them apart."""
    backbone = f"local:{tiny_vit}"
    finelens.features(folder, tmp_path / "x.safetensors", backbone=backbone, console=QUIET)
    features = read_features(tmp_path / "x.safetensors").store.features.global_.numpy()
    dim = features.shape[1]
    prototypes = np.random.default_rng(0).normal(size=(dim, dim)).astype(np.float32) / 5
    known = min(dim, len(features))
    prototypes[:known] = features[:known]
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(dim)))
    given = ["zero-shot", folder, "--classes", tmp_path / "names.txt", "--backbone", backbone, "--out", tmp_path / "r", "--overwrite"]
    said = {}
    for name, rows in (("right", prototypes), ("turned", prototypes.T), ("long", 3 * prototypes), ("long turned", 3 * prototypes.T)):
        np.save(tmp_path / "p.npy", np.ascontiguousarray(rows))
        said[name] = warnings_of(run, *given, "--prototypes", tmp_path / "p.npy")
    assert "transposed" not in said["right"] + said["long"]
    assert "the columns of the prototypes have length 1 and their rows have not: they look transposed" in said["turned"]
    assert "have length 1" not in said["long turned"]
    for name in ("turned", "long turned"):
        assert "the images are nearer to the columns of the prototypes" in said[name]


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


def test_the_other_side_of_a_model_is_not_taken(own, classes, fails):
    x, w = data()
    save_file({"text_embeds": w}, own / "texts.safetensors")
    save_file({"image_embeds": x}, own / "images.safetensors")
    base = ["--classes", classes, "--out", own / "r", "--prototypes"]
    assert "cannot tell which tensor holds the features (found: text_embeds)" in fails("zero-shot", own / "texts.safetensors", *base, own / "P.npy")
    assert "cannot tell which tensor holds the prototypes (found: image_embeds)" in fails(
        "zero-shot", own / "X.npy", *base, own / "images.safetensors"
    )


def test_a_logarithm_in_place_of_the_scale_is_doubted(own, classes, run):
    save_file({"features": data()[0]}, own / "L.safetensors", {"logit_scale": "4.6052"})
    save_file({"features": data()[0], "logit_scale": np.array([4.6052], np.float32)}, own / "T.safetensors")
    for name in ("L", "T"):
        said = warnings_of(run, "zero-shot", own / f"{name}.safetensors", "--classes", classes, "--prototypes", own / "P.npy", "--out", own / name)
        assert "is it the logarithm, as models keep it? Then give --logit-scale 100" in said


def test_memory_order_does_not_matter(own, classes):
    """Our reader: what the file says in Fortran order or as a view is what the array said. Writers differ, see the page."""
    x = data()[0]
    np.save(own / "F.npy", np.asfortranarray(x))
    np.save(own / "V.npy", np.repeat(x, 2, axis=1)[:, ::2])
    save_file({"features": np.ascontiguousarray(np.asfortranarray(x))}, own / "C.safetensors")
    expected = read_features(own / "X.npy").store.features.global_
    for name in ("F.npy", "V.npy", "C.safetensors"):
        assert torch.equal(read_features(own / name).store.features.global_, expected)
