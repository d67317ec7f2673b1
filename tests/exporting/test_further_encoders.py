"""A run beside further encoders by name goes out with all its towers in one graph, and is explained; what holds one tower refuses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import finelens
from finelens import api
from finelens.cli import cli
from finelens.errors import UserError
from finelens.exporting import write
from finelens.exporting.check import Runner
from finelens.exporting.program import exported, program_of
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.runs.classifier import Classifier, load_run
from finelens.storage.predictions import read_predictions, softmax
from tests.backbones.encoder_checkpoints import write_dino, write_timm
from tests.toy import CLASSES, QUIET, write_classes, write_photos


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    """Runs on photographs beside a timm model and a DINOv2, each made when it is first asked for."""
    parent = tmp_path_factory.mktemp("further")
    photos, classes = write_photos(parent / "photos", per_class=3), write_classes(parent / "classes.txt")
    write_timm(parent / "second.safetensors", "test_vit")
    write_dino(parent / "dino", "Dinov2")
    specs = {"timm": f"timm:test_vit@{parent / 'second.safetensors'}", "dino": f"transformers:{parent / 'dino'}"}

    def run(method: str, *encoders: str) -> Path:
        out = parent / "-".join((method, *encoders))
        if not out.exists():
            given = {"method": method, "backbone": f"local:{tiny_vit}", "options": {"training": {"precision": "float32"}}, "console": QUIET}
            api.adapt(photos, classes, out, extra_encoders=[specs[name] for name in encoders], **given)
        return out

    return SimpleNamespace(run=run, parent=parent, photos=photos, classes=classes, specs=specs, program=None)


@pytest.fixture
def followed_once(monkeypatch, world) -> None:
    """The program of the run with both encoders is made once."""

    def once(*given):
        world.program = world.program or exported(*given)
        return world.program

    monkeypatch.setattr(write, "exported", once)


def noise(classifier: Classifier, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    sides = [own.image_size for own in classifier.preprocesses]
    return [torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator) for side in sides]


def assert_same_answers(path: Path, to: write.Target, run: Path) -> tuple[list[Tensor], Runner]:
    """Batches other than those that the export itself compares; returns one of them, and what answers."""
    answer, classifier = write.runner(path, to), load_run(run)
    for count in (1, 5, 40):
        views = noise(classifier, count)
        assert torch.allclose(answer(*views), classifier(*views), atol=1e-3, rtol=0)
    return views, answer


def assert_each_tower_counts(views: list[Tensor], answer: Runner) -> None:
    for k, own in enumerate(views):
        others = [255 - own if place == k else kept for place, kept in enumerate(views)]
        assert not torch.allclose(answer(*others), answer(*views), atol=1e-2)


def test_the_classifier_takes_views_for_each_tower_as_predict_does(world):
    classifier = load_run(world.run("joint-gmm", "timm", "dino"))
    photograph = next(world.photos.rglob("*.png"))
    (pixels,) = load_images([str(photograph)], classifier.limits).store
    views = [centre_view(pixels, own)[None] for own in classifier.preprocesses]
    assert [own.shape[-1] for own in views] == [64, 160, 64]
    np.testing.assert_allclose(softmax(classifier(*views).numpy()), classifier.predict_proba([photograph]), atol=1e-4)
    with pytest.raises(UserError, match="looks at 2 further encoders, and got views for 1"):
        classifier(*views[:2])
    with pytest.raises(UserError, match="features of 2 further encoders are needed"):
        classifier(views[0])


@pytest.mark.usefixtures("followed_once")
def test_a_torch_program_holds_all_towers(world, tmp_path):
    run, out = world.run("joint-gmm", "timm", "dino"), tmp_path / "out"
    found = finelens.export(run, out, to="torch", console=QUIET)
    assert (found.images, found.equal) == (12, 12)
    assert found.largest < 1e-3
    assert_each_tower_counts(*assert_same_answers(out / "classifier.pt2", "torch", run))
    told = json.loads((out / "classifier.json").read_text())
    assert told["input"]["name"] == "images"
    assert [further["backbone"] for further in told["further_encoders"]] == [world.specs["timm"], world.specs["dino"]]
    assert [further["input"]["name"] for further in told["further_encoders"]] == ["images_2", "images_3"]
    assert [further["preprocess"]["image_size"] for further in told["further_encoders"]] == [own.image_size for own in load_run(run).preprocesses[1:]]
    card = (out / "MODEL_CARD.md").read_text()
    assert all(card.count(f"derive from `{spec}`") == 1 for spec in world.specs.values())


@pytest.mark.usefixtures("followed_once")
def test_an_onnx_file_takes_views_for_each_tower_or_one_photograph(world, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    run = world.run("joint-gmm", "timm", "dino")
    assert finelens.export(run, tmp_path / "views", to="onnx", console=QUIET).largest < 1e-3
    assert_each_tower_counts(*assert_same_answers(tmp_path / "views" / "classifier.onnx", "onnx", run))
    inside = finelens.export(run, tmp_path / "whole", to="onnx", resize=True, console=QUIET)
    assert inside.files is not None
    assert (inside.files.images, inside.files.equal) == (12, 12)
    told = json.loads((tmp_path / "whole" / "classifier.json").read_text())
    assert told["input"]["name"] == "photograph"
    assert ["input" in further for further in told["further_encoders"]] == [False, False]


def test_the_default_method_goes_out_with_its_second_tower(world, tmp_path):
    run = world.run("consensus", "dino")
    assert finelens.export(run, tmp_path / "out", to="torch", console=QUIET).equal == 12
    assert_same_answers(tmp_path / "out" / "classifier.pt2", "torch", run)


def test_the_third_solver_of_several_views_is_the_same_program_before_it_goes_out(world):
    classifier = load_run(world.run("self-adaptive-ot", "timm"))
    program, views = program_of(classifier.model, classifier.further_backbones), noise(classifier, 5)
    with torch.no_grad():
        assert torch.allclose(program(*views), classifier(*views), atol=1e-4)
        assert_each_tower_counts(views, program)


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
def test_what_holds_one_tower_refuses(to, world, tmp_path):
    with pytest.raises(UserError, match=rf"--to {to} holds one image tower, and the run looks at features of timm:test_vit@.* as well; --to onnx"):
        finelens.export(world.run("joint-gmm", "timm"), tmp_path / "out", to=to, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_weights_that_moved_are_named_and_others_refused(world, tmp_path, tiny_vit):
    run = tmp_path / "run"
    write_timm(tmp_path / "here.safetensors", "test_vit")
    given = {"method": "joint-gmm", "backbone": f"local:{tiny_vit}", "options": {"training": {"precision": "float32"}}, "console": QUIET}
    api.adapt(world.photos, world.classes, run, extra_encoders=[f"timm:test_vit@{tmp_path / 'here.safetensors'}"], **given)
    shutil.move(tmp_path / "here.safetensors", tmp_path / "there.safetensors")
    out, photo = str(tmp_path / "out"), str(next(world.photos.rglob("*.png")))
    with pytest.raises(UserError, match=r"here\.safetensors"):
        finelens.export(run, out, to="torch", console=QUIET)
    moved = ["--extra-encoder", f"timm:test_vit@{tmp_path / 'there.safetensors'}"]
    for command in (["export", str(run), "--to", "torch", "--out", out], ["explain", str(run), photo]):
        found = CliRunner().invoke(cli, [*command, *moved])
        assert found.exit_code == 0, (found.output, found.exception)
    write_timm(tmp_path / "here.safetensors", "test_vit", seed=1)
    with pytest.raises(UserError, match="its weights are not those that the run was made with"):
        finelens.export(run, tmp_path / "other", to="torch", console=QUIET)


def test_features_of_a_file_cannot_go_out_nor_be_explained(world, tmp_path, tiny_vit):
    names = sorted(str(path.relative_to(world.photos)) for path in world.photos.rglob("*.png"))
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    np.save(tmp_path / "second.npy", np.random.default_rng(0).normal(size=(len(names), 24)).astype(np.float32))
    run, given = tmp_path / "run", {"method": "joint-gmm", "backbone": f"local:{tiny_vit}", "console": QUIET}
    api.adapt(world.photos, world.classes, run, extra=[tmp_path / "second.npy"], extra_names=[tmp_path / "names.txt"], **given)
    with pytest.raises(UserError, match=r"features that a model without a name with 24 columns made, .* adapt with --extra-encoder in the place of"):
        finelens.export(run, tmp_path / "out", to="onnx", console=QUIET)
    with pytest.raises(UserError, match=r"came from a file that explain does not have of .* ask finelens predict with --extra"):
        api.explain(run, world.photos / names[0], console=QUIET)


def test_a_photograph_is_explained_with_both_towers(world, tmp_path):
    run = world.run("joint-gmm", "timm", "dino")
    rows = {row.path: row for row in read_predictions(run / "predictions.csv")}
    for name in sorted(rows)[::5]:
        found = api.explain(run, world.photos / name, tmp_path / "page.html", console=QUIET)
        assert found.sides[0].name == rows[name].label
        assert found.sides[0].probability == pytest.approx(rows[name].probability, abs=1e-3)
        assert len(found.maps) == 2
        assert all(side.sentences for side in found.sides)
    assert all(name in CLASSES for name in (found.zero_shot, found.sides[1].name))
