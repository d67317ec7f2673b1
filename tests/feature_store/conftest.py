"""The command, a folder with its feature file, and arrays of an unknown model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import finelens
from finelens.cli import main
from tests.feature_store.arrays import data
from tests.toy import CLASSES, QUIET, write_photos


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


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """24 pictures, a broken one and an exact duplicate."""
    photos = write_photos(tmp_path_factory.mktemp("photos") / "photos")
    (photos / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(photos / CLASSES[1] / "2.png", photos / CLASSES[1] / "copy.png")
    return photos


@pytest.fixture(scope="package")
def encoded(folder, classes, tiny_vit) -> Path:
    """Feature file of ``folder``."""
    out = folder.parent / "F.safetensors"
    finelens.features(folder, out, backbone=f"local:{tiny_vit}", classes=classes, patches=True, crops=2, console=QUIET)
    return out


@pytest.fixture
def own(tmp_path, classes) -> Path:
    """Folder with ``X.npy`` and ``P.npy``."""
    features, prototypes = data()
    np.save(tmp_path / "X.npy", features)
    np.save(tmp_path / "P.npy", prototypes)
    return tmp_path
