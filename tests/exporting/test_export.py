"""Exported files answer as the run does, and what cannot be exported is refused by name."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram

import finelens
from finelens import api
from finelens.cli import cli
from finelens.errors import UserError
from finelens.exporting import check, onnx_file, write
from finelens.exporting.program import exported
from finelens.images.decode import DecodeLimits
from finelens.images.discover import visible_files
from finelens.images.views import centre_view
from finelens.protocol import Backbone, Preprocess
from finelens.runs.classifier import load_run
from finelens.runs.model import Model
from tests.solvers.data import cloud
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

EXPORTED = ("consensus", "gda-em", "zero-shot")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    """Runs on photographs, each made when it is first asked for."""
    parent = tmp_path_factory.mktemp("export")
    photos, classes = write_photos(parent / "photos", per_class=3), write_classes(parent / "classes.txt")

    def run(method: str) -> Path:
        out = parent / method
        if not out.exists():
            api.adapt(photos, classes, out, method=method, backbone=f"local:{tiny_vit}", options=options_for(method, epochs=1), console=QUIET)
        return out

    return SimpleNamespace(run=run, programs={})


@pytest.fixture
def followed_once(monkeypatch, world) -> None:
    """A program that is the same for every export of a run is made once."""

    def once(model: Model, further: tuple[Backbone, ...]) -> ExportedProgram:
        assert not further
        if model.method not in world.programs:
            world.programs[model.method] = exported(model)
        return world.programs[model.method]

    monkeypatch.setattr(write, "exported", once)


def noise(run: Path, count: int) -> Tensor:
    side = load_run(run).backbone.preprocess.image_size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def assert_same_answers(path: Path, to: write.Target, run: Path, tolerance: float = 1e-3) -> None:
    """Batches other than those that the export itself compares."""
    answer, classifier = write.runner(path, to), load_run(run)
    for count in (1, 2, 5, 40):
        views = noise(run, count)
        with torch.no_grad():
            assert torch.allclose(answer(views), classifier(views), atol=tolerance, rtol=0)


@pytest.mark.usefixtures("followed_once")
@pytest.mark.parametrize("method", EXPORTED)
def test_a_torch_program_answers_as_the_run_for_any_number_of_images(method, world, tmp_path):
    run, out = world.run(method), tmp_path / "out"
    difference = write.export(run, out, to="torch", console=QUIET)
    assert (difference.images, difference.equal) == (12, 12)
    assert difference.largest < 1e-3
    assert_same_answers(out / "classifier.pt2", "torch", run)
    assert sorted(path.name for path in out.iterdir()) == ["MODEL_CARD.md", "classifier.json", "classifier.pt2"]
    told = json.loads((out / "classifier.json").read_text())
    assert told["class_names"] == list(CLASSES)
    assert (told["method"], told["checked"]["equal"]) == (method, 12)
    card = (out / "MODEL_CARD.md").read_text()
    assert (run / "MODEL_CARD.md").read_text() in card
    assert "licence" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("followed_once")
def test_onnx_files_answer_as_the_run(world, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    run = world.run("consensus")
    found = {}
    for weights in ("float32", "float16", "int8"):
        found[weights] = write.export(run, tmp_path / weights, to="onnx", weights=weights, console=QUIET)
    assert_same_answers(tmp_path / "float32" / "classifier.onnx", "onnx", run)
    assert found["float32"].largest < 1e-3 < found["int8"].largest
    assert found["float32"].largest < found["float16"].largest < found["int8"].largest
    inside = write.export(run, tmp_path / "resize", to="onnx", resize=True, console=QUIET)
    assert inside.files is not None
    assert (inside.files.images, inside.files.equal) == (12, 12)
    assert json.loads((tmp_path / "resize" / "classifier.json").read_text())["input"]["shape"] == [1, 3, "height", "width"]
    sizes = [(tmp_path / weights / "classifier.onnx").stat().st_size for weights in ("float32", "float16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_without_its_packages_onnx_is_refused_before_the_work(world, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx: pip install 'finelens\[onnx\]'"):
        write.export(tmp_path / "no run", tmp_path / "out", to="onnx", console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("followed_once")
@pytest.mark.parametrize("wrong", [lambda logits: logits + 0.1, lambda logits: logits * torch.nan])
def test_a_file_that_answers_otherwise_is_not_kept(wrong, world, tmp_path, monkeypatch):
    right = write.runner
    monkeypatch.setattr(write, "runner", lambda path, to: lambda views: wrong(right(path, to)(views)))
    with pytest.raises(UserError, match=r"answers otherwise than the run \(logits by (0\.1|nan), .*nothing is kept"):
        write.export(world.run("zero-shot"), tmp_path / "out", to="torch", console=QUIET)
    assert not list(tmp_path.iterdir())


def test_smaller_weights_may_change_logits_but_not_most_answers():
    check.refuse(check.Difference(64, 3.0, 40), exact=False)
    with pytest.raises(UserError, match="44 of 64 classes"):
        check.refuse(check.Difference(64, 3.0, 20), exact=False)
    with pytest.raises(UserError, match="logits by nan"):
        check.refuse(check.Difference(64, float("nan"), 64), exact=False)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("mta", "method mta looks at [0-9]+ further views of each photograph"),
        ("microclip", r"the answer of method microclip is more than a head on the global feature \(it looks at the tokens of the patches\)"),
    ],
)
def test_a_method_that_cannot_be_exported_is_named(method, reason, world, tmp_path):
    with pytest.raises(UserError, match=reason):
        write.export(world.run(method), tmp_path / "out", to="torch", console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_run_on_features_is_refused(tmp_path):
    features, prototypes, _ = cloud([8, 6, 7, 5], 12)
    np.save(tmp_path / "X.npy", features)
    np.save(tmp_path / "W.npy", prototypes)
    run = tmp_path / "run"
    api.adapt(tmp_path / "X.npy", write_classes(tmp_path / "c.txt"), run, prototypes=tmp_path / "W.npy", method="zero-shot", console=QUIET)
    with pytest.raises(UserError, match="has no image tower"):
        write.export(run, tmp_path / "out", to="torch", console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("followed_once")
def test_a_full_disk_is_said(world, tmp_path):
    """There torch's own writer of programs ends the process."""
    run = world.run("zero-shot")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            write.export(run, tmp_path / "out", to="torch", console=QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("followed_once")
def test_nothing_but_an_earlier_export_is_written_over(world, tmp_path):
    run, out = world.run("zero-shot"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"exists; give a new folder$"):
            write.export(run, out, to="torch", overwrite=overwrite, console=QUIET)
    (out / "mine.txt").unlink()
    (out / "classifier.json").write_text("{}")
    with pytest.raises(UserError, match="or --overwrite to replace the earlier export"):
        write.export(run, out, to="torch", console=QUIET)
    write.export(run, out, to="torch", overwrite=True, console=QUIET)
    assert (out / "classifier.pt2").is_file()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists; give a new folder$"):
        write.export(run, out, to="torch", overwrite=True, console=QUIET)
    assert (out / "mine.txt").read_text() == "mine"


def test_the_command_offers_what_there_is(world, tmp_path):
    ask = CliRunner()
    refused = ask.invoke(cli, ["export", str(world.run("zero-shot")), "--to", "tflite", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "'open_clip', 'transformers', 'onnx', 'torch'" in refused.output
    small = ask.invoke(cli, ["export", str(world.run("zero-shot")), "--to", "torch", "--weights", "int8", "--out", str(tmp_path / "out")])
    assert "--weights int8 has an effect with --to onnx only" in str(small.exception) + small.output
    assert not list(tmp_path.iterdir())


def test_from_python_unknown_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown target 'tflite'; known are: open_clip, transformers, onnx, torch"):
        finelens.export(tmp_path, tmp_path / "out", to="tflite")
    with pytest.raises(UserError, match="unknown type of weights 'int4'; known are: float32, float16, int8"):
        finelens.export(tmp_path, tmp_path / "out", to="onnx", weights="int4")


def test_whole_photographs_are_compared_upright_and_of_any_format(tmp_path):
    """Pillow opens no HEIC of itself, which ended in "cannot write", and turns nothing upright, which refused good exports of phone photographs."""
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:30, :45], pixels[30:] = (250, 20, 20), (20, 20, 250)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "phone.heic")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    preprocess = Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3)

    class Run:
        limits, preprocesses = DecodeLimits(), (preprocess,)

        def __call__(self, views: Tensor) -> Tensor:
            return views[:, 0].float().flatten(1) / 255

    def of_image(image: Image.Image) -> Tensor:
        return Run()(centre_view(torch.from_numpy(np.array(image)).permute(2, 0, 1), preprocess)[None])[0]

    found = check.compare_files(Run(), of_image, visible_files(tmp_path))  # type: ignore[arg-type]
    assert found == check.Difference(2, 0.0, 2)
