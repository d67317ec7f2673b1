"""Several encoders at once, from the command line and from Python: matched by photograph or by name, never by position."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import finelens
from finelens import api
from finelens.cli import main
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.files import read_features
from finelens.reporting.record import read_run
from finelens.reporting.review.subject import subject_of_run
from finelens.runs.folder import RunFolder
from finelens.solvers import JointGmm
from finelens.storage.predictions import read_predictions
from tests.backbones.checkpoints import write_tiny_resnet
from tests.toy import CLASSES, QUIET, picture, write_photos

FLOAT32 = {"training": {"precision": "float32"}}


@pytest.fixture
def fails(capsys):
    """The one line of a command that must fail with exit code 2."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        _, err = capsys.readouterr()
        assert stop.value.code == 2, err
        return err.strip().splitlines()[-1]

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """24 pictures and a copy of one, features of two encoders, a finished run on both, and other pictures."""
    folder = tmp_path_factory.mktemp("extra")
    photos = write_photos(folder / "photos")
    shutil.copy(photos / CLASSES[1] / "2.png", photos / CLASSES[1] / "copy.png")
    other = write_photos(folder / "other", names=[f"new {name}" for name in CLASSES], per_class=1)
    from PIL import Image

    for kind in range(4):
        Image.fromarray(picture(kind, 77)).save(next((other / f"new {CLASSES[kind]}").iterdir()))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_tiny_resnet(folder / "second")
    for name, source in (("photos", photos), ("other", other)):
        finelens.features(source, folder / f"{name}.first.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
        finelens.features(source, folder / f"{name}.second.safetensors", backbone=f"local:{folder / 'second'}", console=QUIET)
    given = {"method": "joint-gmm", "backbone": f"local:{tiny_vit}", "console": QUIET}
    finelens.adapt(photos, folder / "classes.txt", folder / "run", extra=[folder / "photos.second.safetensors"], **given)
    return folder


def labels(path: Path) -> list[str | None]:
    return [row.label for row in read_predictions(path)]


def probabilities(path: Path) -> list[float | None]:
    return [row.probability for row in read_predictions(path)]


def test_the_views_are_those_of_the_solver(world):
    files = [read_features(world / f"photos.{which}.safetensors") for which in ("first", "second")]
    first = files[0].store.features.global_
    known = {sample_id.partition("-")[0]: row for row, sample_id in enumerate(files[1].store.ids)}
    second = files[1].store.features.global_[[known[sample_id.partition("-")[0]] for sample_id in files[0].store.ids]]
    classifier = finelens.load(world / "run", extra=[world / "photos.second.safetensors"])
    model = classifier.model
    solver = JointGmm().fit([first, second], prototypes=model.zero_shot_heads["descriptions"], logit_scale=model.engine.backbone.logit_scale)
    expected = solver.predict_proba([first, second])
    model.temperature = 1.0
    found = classifier.predictions(world / "photos.first.safetensors").logits["logits"].softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not np.allclose(JointGmm().fit(first, prototypes=model.zero_shot_heads["descriptions"], logit_scale=100).predict_proba(first), expected)


def test_the_command_does_what_python_does(world, tmp_path, tiny_vit):
    with pytest.raises(SystemExit) as stop:
        main(
            f"adapt {world}/photos.first.safetensors --classes {world}/classes.txt --out {tmp_path}/run --method joint-gmm "
            f"--extra {world}/photos.second.safetensors".split()
        )
    assert not stop.value.code
    np.testing.assert_allclose(probabilities(tmp_path / "run/predictions.csv"), probabilities(world / "run/predictions.csv"), atol=1e-4)
    with pytest.raises(SystemExit) as stop:
        main(f"predict {tmp_path}/run {world}/other --csv {tmp_path}/new.csv --extra {world}/other.second.safetensors".split())
    assert not stop.value.code
    finelens.predict(
        world / "run", world / "other.first.safetensors", tmp_path / "same.csv", extra=[world / "other.second.safetensors"], console=QUIET
    )
    np.testing.assert_allclose(probabilities(tmp_path / "new.csv"), probabilities(tmp_path / "same.csv"), atol=1e-4)
    assert labels(tmp_path / "new.csv") == labels(tmp_path / "same.csv")


def test_set_is_the_same_as_the_option(world, tmp_path, tiny_vit):
    options = {**FLOAT32, "method": {"extra": ["cls", str(world / "photos.second.safetensors")]}}
    given = {"method": "joint-gmm", "backbone": f"local:{tiny_vit}", "console": QUIET}
    finelens.adapt(world / "photos", world / "classes.txt", tmp_path / "a", options=options, **given)
    extra = ["cls", world / "photos.second.safetensors"]
    finelens.adapt(world / "photos", world / "classes.txt", tmp_path / "b", options=FLOAT32, extra=extra, **given)
    assert (tmp_path / "a/predictions.csv").read_bytes() == (tmp_path / "b/predictions.csv").read_bytes()
    assert probabilities(tmp_path / "a/predictions.csv") != probabilities(world / "run/predictions.csv")
    assert len(finelens.load(tmp_path / "a").model.task.widths_) == 3


def test_the_model_says_what_it_needs(world):
    (encoder,) = json.loads((world / "run/model/model.json").read_text())["extra"]
    file = read_features(world / "photos.second.safetensors")
    assert encoder == {"width": file.dim, "tower": file.tower, "backbone": f"local:{world / 'second'}", "encodes": False}
    events = [json.loads(line) for line in (world / "run/events.jsonl").read_text().splitlines()]
    assert [len(event["encoders"]) for event in events if event["event"] == "extra"] == [1]


def test_order_and_number_of_rows_do_not_matter(world, tmp_path, tiny_vit):
    """An array with the rows in another order, of more images than asked about, and names."""
    file = read_features(world / "photos.second.safetensors")
    rows = [(record.name, record.index) for record in file.records][::-1]
    matrix = file.store.features.global_.numpy()[[index for _, index in rows]]
    np.save(tmp_path / "second.npy", np.concatenate([matrix, np.ones((1, file.dim), np.float32)]))
    (tmp_path / "names.txt").write_text("\n".join([*(name for name, _ in rows), "nobody.png"]) + "\n")
    given = {"extra": [tmp_path / "second.npy"], "extra_names": [tmp_path / "names.txt"], "console": QUIET}
    finelens.adapt(world / "photos", world / "classes.txt", tmp_path / "run", method="joint-gmm", backbone=f"local:{tiny_vit}", **given)
    np.testing.assert_allclose(probabilities(tmp_path / "run/predictions.csv"), probabilities(world / "run/predictions.csv"), atol=1e-4)


def test_arrays_of_both_encoders(tmp_path, fails):
    rng = np.random.default_rng(0)
    first, second, prototypes = rng.normal(size=(12, 6)), rng.normal(size=(12, 5)), rng.normal(size=(4, 6))
    order = rng.permutation(12)
    for name, rows in (("A", first), ("B", second[order]), ("P", prototypes)):
        np.save(tmp_path / f"{name}.npy", rows.astype(np.float32))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "a.txt").write_text("".join(f"{i}.jpg\n" for i in range(12)))
    (tmp_path / "b.txt").write_text("".join(f"{i}.jpg\n" for i in order))
    base = f"adapt {tmp_path}/A.npy --classes {tmp_path}/classes.txt --prototypes {tmp_path}/P.npy --method joint-gmm --extra {tmp_path}/B.npy"
    assert "B.npy: its rows have no names, and rows of several files are never matched by position" in fails(*base.split(), "--out", tmp_path / "run")
    line = fails(*base.split(), "--out", tmp_path / "run", "--extra-names", tmp_path / "b.txt")
    assert line.endswith("never matched by position; give --row-names FILE")
    given = ("--out", tmp_path / "run", "--row-names", tmp_path / "a.txt", "--extra-names", tmp_path / "b.txt")
    with pytest.raises(SystemExit) as stop:
        main([*base.split(), *map(str, given)])
    assert not stop.value.code
    expected = JointGmm().fit_predict_proba([first, second], prototypes=prototypes, logit_scale=100)
    assert labels(tmp_path / "run/predictions.csv") == [CLASSES[c] for c in expected.argmax(1)]


def test_missing_and_wrong_features_are_one_line(world, tmp_path, fails, tiny_vit):
    base = f"adapt {world}/photos --classes {world}/classes.txt --out {tmp_path}/run --backbone local:{tiny_vit} --method".split()
    second = world / "photos.second.safetensors"
    assert "holds none of the 25 images: it was made from others" in fails(*base, "joint-gmm", "--extra", world / "other.second.safetensors")
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((world / "photos" / CLASSES[0]).iterdir()):
        shutil.copy(path, few)
    finelens.features(few, tmp_path / "few.safetensors", backbone=f"local:{world / 'second'}", console=QUIET)
    line = fails(*base, "joint-gmm", "--extra", tmp_path / "few.safetensors")
    assert "few.safetensors has no feature of 'blue disc/0.png' and of 18 more; write it again from the same images" in line
    assert "joint-gmm or consensus only, and the method is stata" in fails(*base, "stata", "--extra", second)
    assert "--method auto has yet to choose" in fails(*base, "auto", "--extra", second)
    assert "no-such.npy does not exist" in fails(*base, "joint-gmm", "--extra", tmp_path / "no-such.npy")
    assert "method.extra" in fails(*base, "joint-gmm", "--extra", "dino")
    assert "say the same thing" in fails(*base, "joint-gmm", "--extra", second, "--set", "method.extra=[]")
    assert "--extra-names is about the files of --extra" in fails(*base, "joint-gmm", "--extra-names", tmp_path / "x")
    assert "--extra-names: 1 file for 0 arrays" in fails(*base, "joint-gmm", "--extra", second, "--extra-names", tmp_path / "x")
    assert not (tmp_path / "run").exists()


def test_prediction_needs_the_same_encoders(world, tmp_path, fails):
    second, csv = world / "other.second.safetensors", tmp_path / "new.csv"
    predict = ("predict", world / "run", world / "other", "--csv", csv)
    line = fails(*predict)
    assert "1 further encoder (local:" in line
    assert line.endswith("and got 0: give a file of these images for each with --extra FILE, in that order")
    assert "and got 2" in fails(*predict, "--extra", second, "--extra", second)
    first = world / "other.first.safetensors"
    assert "other.first.safetensors was made with" in fails(*predict, "--extra", first)
    np.save(tmp_path / "narrow.npy", np.ones((4, 5), np.float32))
    assert "has features of 5 columns, and the run needs those of local:" in fails(*predict, "--extra", tmp_path / "narrow.npy")
    assert "holds none of the 4 images" in fails(*predict, "--extra", world / "photos.second.safetensors")
    assert not csv.exists()
    with pytest.raises(UserError, match="give a file of these images for each with --extra FILE"):
        finelens.load(world / "run").predict_proba(world / "other")
    finelens.zero_shot(world / "photos", world / "classes.txt", tmp_path / "plain", console=QUIET)
    line = fails("predict", tmp_path / "plain", world / "other", "--csv", csv, "--extra", second)
    assert line.endswith("the run was made without further encoders; leave it out")


def test_features_of_other_weights_are_refused(world, tmp_path):
    write_tiny_resnet(tmp_path / "third", seed=1)
    finelens.features(world / "other", tmp_path / "F.safetensors", backbone=f"local:{tmp_path / 'third'}", console=QUIET)
    with pytest.raises(UserError, match=r"was made with local:.*third with .* columns, and the run needs local:.*second"):
        finelens.predict(world / "run", world / "other", tmp_path / "new.csv", extra=[tmp_path / "F.safetensors"], console=QUIET)


def test_evaluate_report_explain_and_resume(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    result = finelens.evaluate(run, world / "photos", extra=[world / "photos.second.safetensors"], console=QUIET)
    assert result["n"] == 25
    finelens.report(run, labels="folders", console=QUIET)
    assert json.loads((run / "evaluation.json").read_text())["accuracy"] == result["accuracy"]
    assert finelens.resume(run, console=QUIET) is None
    with pytest.raises(UserError, match="which came from a file that explain does not have of"):
        api.explain(run, world / "photos" / CLASSES[0] / "0.png", console=QUIET)
    # A run that was stopped before it finished begins again, with the files that its configuration names.
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    before = (run / "predictions.csv").read_bytes()
    assert finelens.resume(run, console=QUIET) is not None
    assert (run / "predictions.csv").read_bytes() == before


def test_the_live_review_looks_at_them_too(world, tmp_path):
    folder = RunFolder.open(world / "run", lock=False)
    subject = subject_of_run(folder, read_run(folder), tmp_path / "hints.csv", QUIET)
    first, second = (read_features(world / f"photos.{which}.safetensors").store.features for which in ("first", "second"))
    assert subject.looks.shape[1] == first.global_.shape[1] + first.cls.shape[1] + second.global_.shape[1]


def test_a_live_review_without_their_files_says_so_and_goes_on(world, tmp_path, capsys):
    shutil.copytree(world / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    gone = str(tmp_path / "gone.safetensors")
    config["method_options"]["extra"] = [entry if entry == "cls" else gone for entry in config["method_options"]["extra"]]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    folder = RunFolder.open(tmp_path / "run", lock=False)
    subject = subject_of_run(folder, read_run(folder), tmp_path / "hints.csv", Console())
    first = read_features(world / "photos.first.safetensors").store.features
    assert subject.looks.shape[1] == first.global_.shape[1] + first.cls.shape[1]
    assert "goes on without the features of further encoders" in capsys.readouterr().err
