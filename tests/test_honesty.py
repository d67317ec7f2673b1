"""Label-free means label-free: nothing that could be a label reaches what is learned."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from finelens import api
from finelens.estimator import LabelFreeClassifier
from finelens.methods.registry import find_method
from tests.toy import ALL, CLASSES, QUIET, TRAINING, digest, options_for, pictures, quick, write_photos

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
    hints = dict(enumerate(CLASSES)) if find_method(method).few_shot else None
    assert model.fit(data, Forbidden(), hints=hints).predict_proba(data).shape == (12, 4)


def shuffled_copy(photos: Path, folder: Path) -> Path:
    """The same pictures in folders that name other classes, each under another name, some moved to a wrong folder."""
    for i, source in enumerate(sorted(photos.rglob("*.png"))):
        target = folder / CLASSES[(i // 6 + 1 + i % 2) % 4] / f"{(7 * i) % 24:02d}-{CLASSES[i % 4]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def hints_file(method: str, photos: Path, path: Path) -> Path | None:
    """Hints about the same pictures wherever they lie, for a method that needs them."""
    if not find_method(method).few_shot:
        return None
    by_content = sorted(photos.rglob("*.png"), key=digest)
    rows = [f"{file.relative_to(photos).as_posix()},{name}" for file, name in zip(by_content, CLASSES, strict=False)]
    path.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ALL)
def test_folder_and_file_names_change_no_bit(backbone, method, photos, classes, tmp_path):
    moved = shuffled_copy(photos, tmp_path / "moved")
    given = {"backbone": f"local:{backbone}", "method": method, "options": options_for(method), "console": QUIET}
    first = api.adapt(photos, classes, tmp_path / "first", hints=hints_file(method, photos, tmp_path / "first.csv"), **given)
    second = api.adapt(moved, classes, tmp_path / "second", hints=hints_file(method, moved, tmp_path / "second.csv"), **given)
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
    api.adapt(flat, classes, tmp_path / "run", console=QUIET, **given)
    model = LabelFreeClassifier(CLASSES, **given).fit(sorted(photos.rglob("*.png")))
    saved = api.load_run(tmp_path / "run").model
    for name, tensor in saved.engine.backbone.image_state().items():
        assert torch.equal(tensor, model.classifier_.model.engine.backbone.image_state()[name]), name


def test_a_photograph_more_changes_the_model(tiny_vit, photos, classes, tmp_path):
    """The tests above would pass for a method that ignores its images."""
    more = write_photos(tmp_path / "more", per_class=7)
    given = {"backbone": f"local:{tiny_vit}", "options": quick(), "console": QUIET}
    api.adapt(photos, classes, tmp_path / "first", **given)
    api.adapt(more, classes, tmp_path / "second", **given)
    assert digest(tmp_path / "first/model/model.safetensors") != digest(tmp_path / "second/model/model.safetensors")
