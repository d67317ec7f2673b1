"""Fixtures that several folders of tests share; each is built once and only read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from open_clip.tokenizer import SimpleTokenizer

from finelens.images import decode as decoding
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE, cache_folder
from tests.backbones.checkpoints import write_tiny_resnet, write_tiny_vit
from tests.toy import shared_tokenizer, write_classes, write_photos

# How long an example takes depends on the machine and on what else it does.
settings.register_profile("finelens", deadline=None)
settings.load_profile("finelens")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The order in which a sum is taken depends on the number of threads; tests compare bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one test run have in common, with pytest-xdist and without."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    (folder / "tensors").mkdir(parents=True, exist_ok=True)
    return folder


def own_cache(factory: pytest.TempPathFactory) -> str:
    """A cache with features of its own, and the texts that any process of the test run has encoded: their names say all that they depend on."""
    folder = factory.mktemp("cache")
    (folder / "tensors").symlink_to(shared_folder(factory) / "tensors", target_is_directory=True)
    return str(folder)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """Nothing is read from or written to the cache of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, own_cache(tmp_path_factory))
        yield


@pytest.fixture(autouse=True)
def _no_features_yet(_own_cache) -> None:
    """Each test starts without encoded images, so that it can count forwards."""
    shutil.rmtree(cache_folder() / "features", ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _one_vocabulary() -> Iterator[None]:
    """Unpacking CLIP's vocabulary takes longer than training a tiny model: tokenizers that are built alike share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTokenizer, "__init__", shared_tokenizer())
        yield


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """Folder of a ViT of two layers."""
    return write_tiny_vit(tmp_path_factory.mktemp("backbone") / "vit")


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory) -> Path:
    """Folder of a small CLIP ResNet."""
    return write_tiny_resnet(tmp_path_factory.mktemp("backbone") / "resnet")


@pytest.fixture(scope="session", params=["vit", "resnet"])
def backbone(request) -> Path:
    """Folder of each tiny backbone in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """24 separable pictures in a sub-folder per class."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> Path:
    """File of the four class names."""
    return write_classes(tmp_path_factory.mktemp("classes") / "classes.txt")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names, decode = [], decoding._decode_bytes

    def counted(data, path, limits):
        names.append(path.name)
        return decode(data, path, limits)

    monkeypatch.setattr(decoding, "_decode_bytes", counted)
    return names
