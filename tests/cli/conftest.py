from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from finelens.cli import main
from tests.toy import CLASSES, picture, write_classes, write_photos

FAST = (
    *("--method", "microclip", "--set", "training.epochs=2", "--set", "training.batch_size=8"),
    *("--set", "training.lr=0.001", "--set", "method.crops=2"),
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """The command line in this process: ``run("adapt", ...)`` gives exit code, standard output and standard error."""

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return call


@pytest.fixture(scope="package")
def world(tmp_path_factory, tiny_vit) -> Path:
    """Folder with ``photos`` (24 good pictures, a corrupt one, a text file and a hidden file), ``classes.txt`` and ``backbone``."""
    root = tmp_path_factory.mktemp("world")
    photos = write_photos(root / "photos")
    good = (photos / CLASSES[0] / "0.png").read_bytes()
    (photos / "broken.jpg").write_bytes(good[: len(good) // 2])
    (photos / "notes.txt").write_text("not a picture")
    (photos / ".hidden.png").write_bytes(good)
    write_classes(root / "classes.txt")
    shutil.copytree(tiny_vit, root / "backbone")
    new = root / "new"
    new.mkdir()
    for kind, name in enumerate(CLASSES):
        Image.fromarray(picture(kind, 100)).save(new / f"{name}.png")
    return root


@pytest.fixture
def given(world) -> tuple[object, ...]:
    """Arguments that ``adapt`` and ``zero-shot`` need, but for ``--out``."""
    return (world / "photos", "--classes", world / "classes.txt", "--backbone", f"local:{world / 'backbone'}")


@pytest.fixture(scope="package")
def adapted(world) -> Path:
    """A finished run over ``photos``; only read."""
    arguments = [world / "photos", "--classes", world / "classes.txt", "--backbone", f"local:{world / 'backbone'}", "--out", world / "run"]
    with pytest.raises(SystemExit) as stop:
        main(["adapt", *map(str, arguments), *FAST])
    assert not stop.value.code
    return world / "run"
