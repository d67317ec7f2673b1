"""Label-free means label-free: nothing that could be a label reaches what is learned."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from finelens import api
from finelens.errors import UserError
from finelens.estimator import LabelFreeClassifier
from finelens.methods.registry import find_method
from tests.toy import ALL, CLASSES, QUIET, TRAINING, digest, hints_file, options_for, pictures, quick, write_photos

NAMES = ("label", "labels", "target", "targets", "y", "classes", "class_to_idx", "samples", "imgs")


class Peeking(AssertionError):
    """Somebody looked."""


class Forbidden:
    """Raises Peeking when one of its label attributes is read."""

    def __getattribute__(self, name: str):
        if name in NAMES:
            raise Peeking(name)
        return super().__getattribute__(name)


class Item(Forbidden):
    def __init__(self, image: np.ndarray):
        self.image = image


class Pair(tuple):
    """(image, label) as torchvision's data sets give it; the label must stay where it is."""

    def __getitem__(self, index):
        if index != 0:
            raise Peeking(str(index))
        return super().__getitem__(index)

    def __iter__(self):
        raise Peeking("iteration")


class Photographs(Forbidden, Dataset):
    """A data set that holds labels and must not be asked for them."""

    def __init__(self, wrap) -> None:
        self.images = [wrap(image) for image in pictures(3)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index]


def test_the_trap_works():
    with pytest.raises(Peeking):
        _ = Photographs(Item).targets
    with pytest.raises(Peeking):
        _ = Item(pictures(1)[0]).label
    with pytest.raises(Peeking):
        _, _ = Pair((0, 1))


@pytest.mark.parametrize("wrap", [Item, lambda image: Pair((image, "cat"))], ids=["attribute", "pair"])
@pytest.mark.parametrize("method", ALL)
def test_fit_never_touches_a_label(tiny_vit, method, wrap):
    data = Photographs(wrap)
    model = LabelFreeClassifier(CLASSES, method=method, backbone=f"local:{tiny_vit}", options=options_for(method, epochs=1))
    # What a person gives on purpose goes a way of its own: few-shot methods do not read labels off the data either.
    hints = {3 * kind: name for kind, name in enumerate(CLASSES)} if find_method(method).few_shot else None
    assert model.fit(data, Forbidden(), hints=hints).predict_proba(data).shape == (12, 4)


@pytest.mark.parametrize("method", [method for method in ALL if find_method(method).few_shot])
def test_a_few_shot_method_takes_labels_from_hints_only(tiny_vit, method, photos, classes, tmp_path):
    given = {"backbone": f"local:{tiny_vit}", "method": method, "options": options_for(method, epochs=1)}
    with pytest.raises(UserError, match=r"--hints FILE\.csv"):
        LabelFreeClassifier(CLASSES, **given).fit(Photographs(Item), [0] * 12)
    # Folder names say what the hints say, and nothing reads them.
    with pytest.raises(UserError, match=r"--hints FILE\.csv"):
        api.adapt(photos, classes, tmp_path / "run", console=QUIET, **given)
    assert not (tmp_path / "run").exists()


def shuffled_copy(photos: Path, folder: Path) -> Path:
    """The same pictures in folders that name other classes, each under another name, some moved to a wrong folder."""
    for i, source in enumerate(sorted(photos.rglob("*.png"))):
        target = folder / CLASSES[(i // 6 + 1 + i % 2) % 4] / f"{(7 * i) % 24:02d}-{CLASSES[i % 4]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


@pytest.mark.parametrize("method", ALL)
def test_folder_and_file_names_change_no_bit(backbone, method, photos, classes, tmp_path):
    moved = shuffled_copy(photos, tmp_path / "moved")
    given = {"backbone": f"local:{backbone}", "method": method, "options": options_for(method), "console": QUIET}
    first = api.adapt(photos, classes, tmp_path / "first", **given, **hints_file(method, tmp_path / "first", photos))
    second = api.adapt(moved, classes, tmp_path / "second", **given, **hints_file(method, tmp_path / "second", moved, photos))
    for file in ("model.safetensors", "zero_shot.safetensors", "model.json"):
        assert digest(tmp_path / "first/model" / file) == digest(tmp_path / "second/model" / file), file
    by_content = [
        {digest(folder / row.path): (row.label, row.probability, row.zero_shot_class) for row in result.rows}
        for folder, result in ((photos, first), (moved, second))
    ]
    assert len(by_content[0]) == 24
    assert by_content[0] == by_content[1]


@pytest.mark.parametrize("method", TRAINING)
def test_a_flat_folder_and_python_images_learn_the_same(tiny_vit, method, photos, classes, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, source in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copyfile(source, flat / f"{i}.png")
    given = {"backbone": f"local:{tiny_vit}", "method": method, "options": quick()}
    api.adapt(flat, classes, tmp_path / "run", console=QUIET, **given, **hints_file(method, tmp_path / "run", flat, photos))
    files = sorted(photos.rglob("*.png"))
    hints = {i: file.parent.name for i, file in enumerate(files)} if find_method(method).few_shot else None
    model = LabelFreeClassifier(CLASSES, **given).fit(files, hints=hints)
    saved = api.load_run(tmp_path / "run").model
    for name, tensor in saved.engine.backbone.image_state().items():
        assert torch.equal(tensor, model.classifier_.model.engine.backbone.image_state()[name]), name


def test_a_photograph_more_changes_the_model(tiny_vit, photos, classes, tmp_path):
    """The tests above would pass for a method that ignores its images."""
    more = write_photos(tmp_path / "more", per_class=7)
    given = {"method": "microclip", "backbone": f"local:{tiny_vit}", "options": quick(), "console": QUIET}
    api.adapt(photos, classes, tmp_path / "first", **given)
    api.adapt(more, classes, tmp_path / "second", **given)
    assert digest(tmp_path / "first/model/model.safetensors") != digest(tmp_path / "second/model/model.safetensors")
