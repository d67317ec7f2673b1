"""Features and prototypes that look like some and are not: read, warned of or refused in one line, never used in silence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import finelens
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.feature_store.files import read_features
from tests.feature_store.arrays import D, data, warnings_of
from tests.toy import CLASSES, QUIET


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
    assert "no sentence is of class 'green check'" in refused(prototypes, sentences=prototypes[:3].copy(), sentence_class=np.array([0, 2, 3]))
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
