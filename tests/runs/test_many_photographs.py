"""A feature folder of more photographs than a run holds: passes over memory-mapped shards, a page about a part, and a row for every file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finelens import api
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.feature_store import files, sampled
from finelens.feature_store.files import FORMAT, read_features, read_part
from finelens.feature_store.folder import FeatureFolder, FolderWriter
from finelens.feature_store.sampled import FolderRows
from finelens.protocol import ImageRecord
from finelens.runs import feature_source, inputs
from finelens.solvers import JointGmm
from finelens.solvers.rows import TensorRows
from finelens.storage import growing
from finelens.storage.predictions import read_predictions
from tests.solvers.test_many_rows import clusters
from tests.toy import QUIET

COUNT, CLASSES, WIDTH, PART = 900, 6, 24, 200
BAD = range(5, COUNT, 90)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """``rows.features`` of several shards, some of whose files could not be read, and prototypes."""
    root = tmp_path_factory.mktemp("many")
    x, w = clusters(COUNT, CLASSES, WIDTH)
    np.save(root / "w.npy", w.numpy())
    (root / "classes.txt").write_text("".join(f"kind {c}\n" for c in range(CLASSES)))
    metadata = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION), "logit_scale": "30"}
    with FolderWriter(root / "rows.features", metadata, "toy") as writer:
        for start in range(0, COUNT, 130):
            own = range(start, min(start + 130, COUNT))
            records = [
                ImageRecord(f"{i:04d}.jpg", "unreadable", "damaged", None) if i in BAD else ImageRecord(f"{i:04d}.jpg", "ok", "", f"{i * 7919:064x}")
                for i in own
            ]
            good = [i for i in own if i not in BAD]
            writer.add(records, {"global": x[good], "cls": F.normalize(x[good][:, :5], dim=1)})
        # A shard of nothing but damaged files.
        writer.add([ImageRecord("z.jpg", "unreadable", "damaged", None)], {"global": torch.zeros(0, WIDTH), "cls": torch.zeros(0, 5)})
        writer.finish()
    return root


@pytest.fixture
def _many(monkeypatch):
    for module in (sampled, feature_source, inputs):
        monkeypatch.setattr(module, "MANY", PART)
    monkeypatch.setattr(feature_source, "read_part", lambda path: read_part(path, PART))


def adapt(world: Path, out: Path, method: str = "joint-gmm", **given) -> api.RunResult:
    verb = api.zero_shot if method == "zero-shot" else api.adapt
    options = {"method": {"extra": ()}} if method in ("consensus", "joint-gmm") else {}
    return verb(
        world / "rows.features",
        world / "classes.txt",
        out,
        prototypes=world / "w.npy",
        method=method,
        **{"options": options, "console": QUIET, **given},
    )


def test_rows_of_a_folder_have_the_bits_of_the_tensor(world):
    folder = FeatureFolder(world / "rows.features")
    rows = FolderRows(folder, "global")
    _, tensors = folder.read()
    assert rows.widths == (WIDTH,)
    assert len(rows) == len(tensors["global"]) == COUNT - len(BAD)
    for size in (1, 64, 200, 5000):
        parts = list(rows.parts(size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert torch.equal(torch.cat(parts), tensors["global"])
    some = torch.tensor([889, 0, 700, 128, 129, 130, 0])
    assert torch.equal(rows.at(some), tensors["global"][some])
    w = torch.from_numpy(np.load(world / "w.npy"))
    states = [JointGmm().fit(source, prototypes=w, logit_scale=30.0).state() for source in (rows, TensorRows(tensors["global"]))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_shard_is_compared_with_the_manifest_once(world, monkeypatch):
    asked = []
    digest = files.FeatureFolder.rows_of
    monkeypatch.setattr(FeatureFolder, "rows_of", lambda self, number, kind, check: asked.append(check) or digest(self, number, kind, check=check))
    rows = FolderRows(FeatureFolder(world / "rows.features"), "global")
    for _ in range(3):
        list(rows.parts(100))
    assert sum(asked) == 7
    assert len(asked) == 21


def test_a_part_is_evenly_spread(world):
    whole, part = read_features(world / "rows.features"), read_part(world / "rows.features", PART)
    names = [record.name for record in whole.records if record.index is not None]
    assert [record.name for record in part.records] == [names[i * len(names) // PART] for i in range(PART)]
    assert part.counts == {"ok": len(names), "unreadable": COUNT - len(names) + 1}
    own = {record.name: whole.store.features.global_[record.index] for record in whole.records if record.index is not None}
    assert all(torch.equal(part.store.features.global_[record.index], own[record.name]) for record in part.records)
    assert len(part.store.features.rows) == len(names)
    assert read_part(world / "rows.features", 10**6).store.ids == sorted(whole.store.ids)


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize("method", ["consensus", "joint-gmm", "gda-em", "tip-adapter", "stata", "zlap", "zero-shot"])
def test_a_run_of_many_answers_for_every_file(world, tmp_path, method):
    found = adapt(world, tmp_path / "run", method)
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    assert found.files == len(rows) == COUNT + 1
    assert [row.path for row in rows[:-1]] == [f"{i:04d}.jpg" for i in range(COUNT)]
    assert {row.status for row in rows if row.label is None} == {"unreadable"}
    part = read_predictions(tmp_path / "run" / "predictions_part.csv")
    assert len(part) == PART
    # What the page rests on is among them.
    own = {row.path: row for row in rows}
    assert all(own[row.path].label == row.label and own[row.path].probability == pytest.approx(row.probability, abs=1e-4) for row in part)
    api.predict_to(tmp_path / "run", world / "rows.features", tmp_path / "again.csv", console=QUIET)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "run" / "predictions.csv").read_bytes()
    page = api.report(tmp_path / "run", console=QUIET).read_text()
    assert f"{PART:,} of {COUNT + 1:,}" in page
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    start = next(event for event in events if event["event"] == "images")
    assert start["files"] == COUNT + 1


@pytest.mark.usefixtures("_many")
def test_the_default_method_learns_from_all(world, tmp_path, monkeypatch):
    """Not from the part: the answers are those of a run that holds all rows."""
    adapt(world, tmp_path / "many", "consensus")
    monkeypatch.setattr(feature_source, "MANY", 10**6)
    adapt(world, tmp_path / "few", "consensus")
    many, few = ([row.label for row in read_predictions(tmp_path / name / "predictions.csv")] for name in ("many", "few"))
    assert np.mean([a == b for a, b in zip(many, few, strict=True)]) >= 0.995
    assert not (tmp_path / "few" / "predictions_part.csv").exists()


@pytest.mark.usefixtures("_many")
def test_rows_of_a_run_that_was_killed_are_kept(world, tmp_path, monkeypatch):
    adapt(world, tmp_path / "whole")
    monkeypatch.setattr("finelens.runs.predict.GROUP", 100)
    added = []
    add = growing.GrowingFiles.add

    def once(self, blocks, done):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(done)
        add(self, blocks, done)

    monkeypatch.setattr(growing.GrowingFiles, "add", once)
    with pytest.raises(KeyboardInterrupt):
        adapt(world, tmp_path / "run")
    assert added == [100, 200, 300]
    monkeypatch.setattr(growing.GrowingFiles, "add", lambda self, blocks, done: (added.append(done), add(self, blocks, done)))
    api.resume(tmp_path / "run", console=QUIET)
    assert added[3] == 400
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


@pytest.mark.usefixtures("_many")
def test_labels_are_held_against_all(world, tmp_path):
    adapt(world, tmp_path / "run")
    rows = [row for row in read_predictions(tmp_path / "run" / "predictions.csv") if row.label is not None]
    lines = "".join(f"{row.path},{row.label}\n" for row in rows)
    (tmp_path / "labels.csv").write_text("path,label\n" + lines)
    found = api.evaluate(tmp_path / "run", world / "rows.features", tmp_path / "labels.csv", console=QUIET)
    assert found["n"] == len(rows) == COUNT - len(BAD)
    assert found["accuracy"] == 1


@pytest.mark.usefixtures("_many")
def test_what_needs_all_rows_at_once_is_refused(world, tmp_path):
    (tmp_path / "hints.csv").write_text("path,label\n0000.jpg,kind 0\n")
    with pytest.raises(UserError, match="--hints is not taken with a feature folder of more than"):
        adapt(world, tmp_path / "run", hints=tmp_path / "hints.csv")
    with pytest.raises(UserError, match="--extra is not taken"):
        adapt(world, tmp_path / "run", "consensus", extra=[world / "rows.features"], options={})
