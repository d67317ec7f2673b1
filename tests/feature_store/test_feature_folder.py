"""A folder of shards: written as it goes, taken up after an end at any moment, read a shard at a time, and the same to every verb as one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import finelens
from finelens import api
from finelens.errors import UserError
from finelens.feature_store import folder as folders
from finelens.feature_store.files import read_features
from finelens.feature_store.folder import FeatureFolder, FolderWriter
from finelens.protocol import ImageRecord
from finelens.runs import encode_folder
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

SHARD, GROUP = 10, 5


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(encode_folder, "SHARD", SHARD)
    monkeypatch.setattr(encode_folder, "GROUP", GROUP)
    monkeypatch.setattr(folders, "SHARD", SHARD)
    monkeypatch.setattr("finelens.runs.predict.GROUP", GROUP)
    monkeypatch.setattr("finelens.runs.to_file.GROUP", GROUP)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """``photos`` with a damaged one and copies in different shards, and ``whole.safetensors`` of them."""
    root = tmp_path_factory.mktemp("folder")
    photos = write_photos(root / "photos")
    (photos / CLASSES[1] / "3.png").write_bytes(b"no picture")
    for name in ("a.png", "y.png", "z.png"):
        shutil.copy(photos / CLASSES[0] / "0.png", photos / name)
    write_classes(root / "classes.txt")
    finelens.features(photos, root / "whole.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
    return root


def written(world: Path, tiny_vit: Path, out: Path, **given) -> Path:
    assert finelens.features(world / "photos", out, backbone=f"local:{tiny_vit}", console=QUIET, **given) == []
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_what_a_file_holds(world, tiny_vit, tmp_path):
    out = written(world, tiny_vit, tmp_path / "x.features", classes=world / "classes.txt")
    manifest = json.loads((out / "manifest.json").read_text())
    assert [(shard["files"], shard["rows"]) for shard in manifest["shards"]] == [(10, 10), (10, 9), (7, 7)]
    assert sorted(contents(out)) == ["manifest.json", *(f"shard-0000{i}.safetensors" for i in range(3)), "texts.safetensors"]
    one, many = read_features(world / "whole.safetensors"), read_features(out)
    assert many.records == one.records
    assert many.store.ids == one.store.ids
    assert torch.equal(many.store.features.global_, one.store.features.global_)
    assert torch.equal(many.store.features.cls, one.store.features.cls)
    assert (many.tower, many.backbone, many.logit_scale) == (one.tower, one.backbone, one.logit_scale)
    # Each shard is a feature file, and the texts stand for class prototypes.
    assert len(read_features(out / "shard-00001.safetensors").records) == 10
    api.adapt(out, world / "classes.txt", tmp_path / "run", prototypes=out / "texts.safetensors", method="zero-shot", verb="zero-shot", console=QUIET)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_killed_command_goes_on_with_the_same_bytes(world, tiny_vit, tmp_path, monkeypatch, at):
    whole = contents(written(world, tiny_vit, tmp_path / "whole.features"))
    groups, load = [], encode_folder.read_group

    def dying(items, limits, phases):
        groups.append(len(items))
        if len(groups) == at + 1:
            raise Killed
        return load(items, limits, phases)

    monkeypatch.setattr(encode_folder, "read_group", dying)
    with pytest.raises(Killed):
        written(world, tiny_vit, tmp_path / "x.features")
    with pytest.raises(UserError, match="is not finished: give the same" if at > 1 else "has no manifest"):
        read_features(tmp_path / "x.features")
    # A shard that was being written.
    (tmp_path / "x.features" / "shard-00002.safetensors").write_bytes(b"half")
    done = len(groups) - 1
    monkeypatch.setattr(encode_folder, "read_group", load)
    monkeypatch.setattr(encode_folder, "read_group", lambda items, limits, phases: groups.append(len(items)) or load(items, limits, phases))
    written(world, tiny_vit, tmp_path / "x.features")
    # Two groups a shard; those of whole shards are not decoded again.
    assert len(groups) - 1 - done == 6 - at // 2 * 2
    assert contents(tmp_path / "x.features") == whole


def test_other_photographs_begin_anew(world, tiny_vit, tmp_path, monkeypatch):
    photos = shutil.copytree(world / "photos", tmp_path / "photos")
    load, calls = encode_folder.read_group, []

    def dying(items, limits, phases):
        calls.append(len(items))
        if len(calls) == 4:
            raise Killed
        return load(items, limits, phases)

    monkeypatch.setattr(encode_folder, "read_group", dying)
    with pytest.raises(Killed):
        finelens.features(photos, tmp_path / "x.features", backbone=f"local:{tiny_vit}", console=QUIET)
    (photos / "a.png").write_bytes((photos / CLASSES[0] / "1.png").read_bytes())
    finelens.features(photos, tmp_path / "x.features", backbone=f"local:{tiny_vit}", console=QUIET)
    assert len(calls) == 4 + 6


def test_answers_are_those_of_the_file_and_come_from_one_shard_at_a_time(world, tiny_vit, tmp_path, monkeypatch):
    out = written(world, tiny_vit, tmp_path / "x.features")
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("zero-shot"), "console": QUIET}
    api.zero_shot(out, world / "classes.txt", tmp_path / "run", **given)
    api.zero_shot(world / "whole.safetensors", world / "classes.txt", tmp_path / "one", **given)
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (tmp_path / "one" / "predictions.csv").read_bytes()
    opened = []
    load = folders.load_tensors
    monkeypatch.setattr(folders, "load_tensors", lambda path: opened.append(path.name) or load(path))
    monkeypatch.setattr(FeatureFolder, "read", None)
    api.predict(tmp_path / "run", out, tmp_path / "out.csv", console=QUIET)
    assert opened == [f"shard-0000{i}.safetensors" for i in range(3)]
    api.predict(tmp_path / "run", world / "whole.safetensors", tmp_path / "one.csv", console=QUIET)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    opened.clear()
    api.predict(tmp_path / "run", out, tmp_path / "out.csv", shard="2/3", console=QUIET)
    assert opened == ["shard-00001.safetensors"]


def test_a_writer_holds_one_shard(tmp_path):
    """What is on the disk after each shard is all there is of it; the next does not need it."""
    rng = np.random.default_rng(0)
    with FolderWriter(tmp_path / "x.features", {"format": "finelens-features", "schema_version": "1", "tower": "t"}, "key") as writer:
        for shard in range(3):
            records = [ImageRecord(f"{shard}/{i}.jpg", "ok", "", f"{shard * 4 + i:064x}") for i in range(4)]
            writer.add(records, {"global": torch.from_numpy(rng.normal(size=(4, 5))), "cls": torch.from_numpy(rng.normal(size=(4, 3)))})
            assert not any(isinstance(value, torch.Tensor) for value in vars(writer).values())
        writer.finish()
    parts = list(FeatureFolder(tmp_path / "x.features").tables(range(2, 11), 5))
    names = [f"{shard}/{i}.jpg" for shard in range(3) for i in range(4)]
    assert [[record.name for record in table] for table, _ in parts] == [names[2:7], names[7:11]]
    whole = FeatureFolder(tmp_path / "x.features").read()[1]["global"]
    assert torch.equal(torch.cat([tensors["global"] for _, tensors in parts]), whole[2:11])


def test_damage_is_one_line(world, tiny_vit, tmp_path):
    out = written(world, tiny_vit, tmp_path / "x.features")
    shard = out / "shard-00001.safetensors"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"shard-00001.safetensors is not the shard that manifest.json names"):
        read_features(out)
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot read .*shard-00001"):
        read_features(out)
    manifest = json.loads((out / "manifest.json").read_text())
    for damage in (
        {"format": "other"},
        {"schema_version": 99},
        {"shards": 3},
        {"shards": [{"name": "../x", "files": 1, "rows": 1, "bytes": 1, "sha256": ""}]},
    ):
        (out / "manifest.json").write_text(json.dumps({**manifest, **damage}))
        with pytest.raises(UserError, match="manifest"):
            read_features(out)


def test_folders_that_are_refused(world, tiny_vit, tmp_path):
    out = written(world, tiny_vit, tmp_path / "x.features")
    with pytest.raises(UserError, match="exists; give another name, or --overwrite"):
        written(world, tiny_vit, out)
    # What somebody has put beside the shards is not replaced with them.
    for name in ("mine.safetensors", "shard-mine.safetensors"):
        (out / name).write_text("mine")
    (out / "shard-00003.safetensors").write_text("of before")
    before = contents(out)
    del before["shard-00003.safetensors"]
    written(world, tiny_vit, out, overwrite=True)
    assert contents(out) == before
    (tmp_path / "mine.features").mkdir()
    (tmp_path / "mine.features" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by finelens features"):
        written(world, tiny_vit, tmp_path / "mine.features", overwrite=True)
    with pytest.raises(UserError, match="one file"):
        written(world, tiny_vit, tmp_path / "y.features", crops=2)
    with pytest.raises(UserError, match="holds features already"):
        finelens.features(world / "whole.safetensors", tmp_path / "y.features", console=QUIET)


def test_a_list_of_photographs(world, tiny_vit, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{world / 'photos' / name / '1.png'}\n" for name in CLASSES[:2]))
    finelens.features(tmp_path / "list.txt", tmp_path / "x.features", backbone=f"local:{tiny_vit}", console=QUIET)
    records = read_features(tmp_path / "x.features").records
    assert [record.name.split("/")[-2] for record in records] == list(CLASSES[:2])
    assert {record.status for record in records} == {"ok"}
