from __future__ import annotations

import pytest

from finelens import api
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

# Names that a page made by pasting strings would run, break on or turn around.
HOSTILE = ('<script>alert("1")</script>', '" onerror="alert(2)', "</script><h1>three", "\u202egnp.gpj \u05e9\u05dc\u05d5\u05dd & {{ 7 * 7 }}")
FILES = ("<img src=x onerror=alert(1)>", "' onload='x", "<!--", "\u05ea\u05de\u05d5\u05e0\u05d4")


def make_run(folder, backbone, method="stata", names=CLASSES, files=CLASSES, **training):
    photos = write_photos(folder / "photos", files)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    first = photos / files[0] / "0.png"
    (photos / "copy.png").write_bytes(first.read_bytes())
    classes = write_classes(folder / "classes.txt", names)
    api.adapt(photos, classes, folder / "run", backbone=f"local:{backbone}", method=method, options=options_for(method, **training), console=QUIET)
    return folder / "run"


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory, tiny_vit):
    return make_run(tmp_path_factory.mktemp("plain"), tiny_vit)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory, tiny_vit):
    return make_run(tmp_path_factory.mktemp("hostile"), tiny_vit, names=HOSTILE, files=FILES)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, tiny_vit):
    return make_run(tmp_path_factory.mktemp("trained"), tiny_vit, method="microclip")
