"""A feature folder of more photographs than a run holds: passes over memory-mapped shards, a page about a part, and a row for every file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finelens import api
from finelens.core.console import Console
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.feature_store import files, sampled
from finelens.feature_store.extra import read_extra
from finelens.feature_store.extra_towers import Beside
from finelens.feature_store.files import FORMAT, read_features, read_part
from finelens.feature_store.folder import FeatureFolder, FolderWriter
from finelens.feature_store.sampled import FolderRows
from finelens.protocol import ImageRecord
from finelens.runs import feature_source
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
                ImageRecord(f"{i:04d}.jpg", "unreadable", "damaged", None) if i in BAD else ImageRecord(f"{i:04d}.jpg", "ok", "", f"{i * 7919:016x}")
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
    for module in (sampled, feature_source):
        monkeypatch.setattr(module, "MANY", PART)
    monkeypatch.setattr(feature_source, "read_part", lambda path, also: read_part(path, PART, also))


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
def test_groups_of_many_are_those_of_a_run_that_holds_all(world, tmp_path, monkeypatch):
    """The same cells, and the same bytes as ``predict`` gives; rows of one group lie apart."""
    lines = "".join(f"{i:04d}.jpg,burst {i % 300}\n" for i in range(COUNT))
    (tmp_path / "groups.csv").write_text("path,group\n" + lines)
    rule = f"column:{tmp_path / 'groups.csv'}"
    adapt(world, tmp_path / "many", group_by=rule)
    found = (tmp_path / "many" / "predictions_groups.csv").read_bytes()
    api.predict_to(tmp_path / "many", world / "rows.features", tmp_path / "again.csv", group_by=rule, console=QUIET)
    assert (tmp_path / "again_groups.csv").read_bytes() == found
    monkeypatch.setattr(feature_source, "MANY", 10**6)
    adapt(world, tmp_path / "few", group_by=rule)
    rows = [list(csv.DictReader(io.StringIO(text.decode()))) for text in (found, (tmp_path / "few" / "predictions_groups.csv").read_bytes())]
    assert len(rows[0]) == len(rows[1]) == COUNT + 1
    assert {row["group_size"] for row in rows[0]} >= {"2", "3"}
    exact = ("path", "group", "group_size", "copy_of", "status")
    assert [[row[name] for name in exact] for row in rows[0]] == [[row[name] for name in exact] for row in rows[1]]
    assert np.mean([a["group_class"] == b["group_class"] for a, b in zip(*rows, strict=True)]) >= 0.995


@pytest.fixture(scope="module")
def two_encoders(world, tmp_path_factory) -> Path:
    """The photographs of ``world`` in ``rows.features``, and what another encoder makes of them and of 50 others in another order:
    ``second.features``, and ``second.npy`` with ``second.txt``.
    """
    root, whole = tmp_path_factory.mktemp("two"), FeatureFolder(world / "rows.features")
    records, tensors = whole.read()
    good = [record for record in records if record.sample_id is not None]
    about = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION), "logit_scale": "30"}
    own_class = tensors["global"] @ torch.from_numpy(np.load(world / "w.npy")).T
    means = F.normalize(torch.randn(CLASSES, 40, generator=torch.Generator().manual_seed(5)), dim=1)
    noise = torch.randn(len(good) + 50, 40, generator=torch.Generator().manual_seed(6)) / 40**0.5
    second = F.normalize(torch.cat([means[own_class.argmax(1)], means.repeat(9, 1)[:50]]) + noise, dim=1)
    order = torch.randperm(len(second), generator=torch.Generator().manual_seed(7)).tolist()
    names = [*good, *(ImageRecord(f"other {i}.jpg", "ok", "", f"{i:015x}f") for i in range(50))]
    for name, tower, rows, size in (("rows", "first tower", range(len(good)), 130), ("second", "second tower", order, 97)):
        values = tensors["global"] if name == "rows" else second
        with FolderWriter(root / f"{name}.features", about | {"tower": tower}, name) as writer:
            for start in range(0, len(rows), size):
                own = list(rows[start : start + size])
                cls = tensors["cls"][own] if name == "rows" else values[own]
                # A damaged file in each shard, so that places of files and of rows differ.
                bad = ImageRecord(f"damaged {start}.jpg", "unreadable", "damaged", None)
                writer.add([bad, *(names[i] for i in own)], {"global": values[own], "cls": cls})
            writer.finish()
    np.save(root / "second.npy", second[order].numpy())
    (root / "second.txt").write_text("".join(f"{names[i].name}\n" for i in order))
    for name in ("w.npy", "classes.txt"):
        (root / name).write_bytes((world / name).read_bytes())
    return root


def of_extra(root: Path, kind: str) -> dict[str, list[Path]]:
    """``second.features``, or the array with names."""
    return {"extra": [root / "second.features"]} if kind == "folder" else {"extra": [root / "second.npy"], "extra_names": [root / "second.txt"]}


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize(("method", "kind"), [("consensus", "folder"), ("joint-gmm", "array"), ("self-adaptive-ot", "folder")])
def test_several_encoders_of_many(two_encoders, tmp_path, monkeypatch, method, kind):
    """The answers of a run that holds all rows, and those of ``predict``; and the second encoder counts."""
    given = {"method": method, "options": {}, **of_extra(two_encoders, kind)}
    with monkeypatch.context() as held:
        # Nothing reads more than a part of either at once.
        held.setattr(FeatureFolder, "read", lambda self: pytest.fail("all rows were read into memory"))
        adapt(two_encoders, tmp_path / "many", **given)
        api.predict_to(tmp_path / "many", two_encoders / "rows.features", tmp_path / "again.csv", **of_extra(two_encoders, kind), console=QUIET)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "many" / "predictions.csv").read_bytes()
    assert len(api.ask(tmp_path / "many", 4, csv=tmp_path / "questions.csv", console=QUIET)) == 4
    monkeypatch.setattr(feature_source, "MANY", 10**6)
    adapt(two_encoders, tmp_path / "few", **given)
    adapt(two_encoders, tmp_path / "one", method=method, options={"method": {"extra": ["cls"]}})
    many, few, one = ([row.label for row in read_predictions(tmp_path / name / "predictions.csv")] for name in ("many", "few", "one"))
    assert np.mean([a == b for a, b in zip(many, few, strict=True)]) >= 0.995
    assert np.mean([a == b for a, b in zip(many, one, strict=True)]) < 0.99


@pytest.mark.usefixtures("_many")
def test_further_features_of_many_are_matched_row_by_row(two_encoders):
    part, source = read_part(two_encoders / "rows.features", PART), read_features(two_encoders / "rows.features")
    files = read_extra([two_encoders / "second.features"], [], source_named=False)
    beside = Beside(None, 0)
    found, held = files.of_all(part, beside), files.of(source, beside)
    whole = torch.empty_like(held.features[0])
    names = {record.name: record.index for record in source.records if record.index is not None}
    for row, record in enumerate(part.store.features.rows.records()):
        whole[row] = held.features[0][names[record.name]]
    (rows,) = found.rows
    assert (len(rows), rows.widths) == (len(whole), (40,))
    for size in (1, 64, 5000):
        assert torch.equal(torch.cat(list(rows.parts(size))), whole)
    assert torch.equal(found.features[0], rows.at(part.store.features.places))
    assert found.digest not in (held.digest, replace(found, contents=("another",)).digest)


@pytest.mark.usefixtures("_many")
def test_a_further_encoder_that_lacks_one_of_many_is_refused(two_encoders, tmp_path):
    """Also where the lacking one is not in the part."""
    whole = FeatureFolder(two_encoders / "second.features")
    records, tensors = whole.read()
    good = [record for record in records if record.sample_id is not None]
    kept = [i for i, record in enumerate(good) if record.name != "0001.jpg"]
    with FolderWriter(tmp_path / "less.features", whole.metadata, "less") as writer:
        writer.add([good[i] for i in kept], {name: tensors[name][kept] for name in ("global", "cls")})
        writer.finish()
    with pytest.raises(UserError, match=r"no feature of '0001\.jpg'"):
        adapt(two_encoders, tmp_path / "run", "consensus", options={}, extra=[tmp_path / "less.features"])


def truth(world: Path) -> dict[str, str]:
    """Classes by name of the rows that could be read, one of six in turn as they were drawn."""
    w = np.load(world / "w.npy")
    whole = read_features(world / "rows.features")
    best = (whole.store.features.global_.numpy() @ w.T).argmax(1)
    return {record.name: f"kind {best[record.index]}" for record in whole.records if record.index is not None}


def test_a_part_holds_what_was_asked_for_besides(world):
    found = read_part(world / "rows.features", 50, frozenset({"0003.jpg", "0005.jpg", "0899.jpg"}))
    names = [record.name for record in found.records]
    # The second could not be read: it is told of all the same.
    assert {"0003.jpg", "0005.jpg", "0899.jpg"} <= set(names)
    assert names == sorted(names)
    assert len(found.store) == len(names) - 1 <= 52
    features = found.store.features
    assert torch.equal(features.rows.at(features.places), features.global_)


@pytest.mark.usefixtures("_many")
# How much the label-free answer counts beside what answers teach hangs on one of so few: by passes it may be taken otherwise.
@pytest.mark.parametrize(("method", "alike"), [("consensus", 0.95), ("joint-gmm", 0.99), ("stata", 0.99), ("zlap", 0.98)])
def test_answers_about_any_of_many(world, tmp_path, monkeypatch, method, alike):
    """About files in the part and outside of it; the same as where all rows are held, and a person's answer stands whatever the model says."""
    labels = truth(world)
    given = {name: labels[name] for name in sorted(labels)[3::40]} | {"0001.jpg": "kind 5"}
    (tmp_path / "hints.csv").write_text(
        "path,label\n0002.jpg,\n0005.jpg,kind 0\nnowhere.jpg,kind 0\n" + "".join(f"{n},{c}\n" for n, c in given.items())
    )
    adapt(world, tmp_path / "many", method, hints=tmp_path / "hints.csv")
    rows = {row.path: row for row in read_predictions(tmp_path / "many" / "predictions.csv")}
    assert len(rows) == COUNT + 1
    assert {name: row.label for name, row in rows.items() if row.answered} == given | {"0002.jpg": None}
    part = read_predictions(tmp_path / "many" / "predictions_part.csv")
    assert given.keys() <= {row.path for row in part if row.answered}
    monkeypatch.setattr(feature_source, "MANY", 10**6)
    adapt(world, tmp_path / "few", method, hints=tmp_path / "hints.csv")
    # Of a run that holds all rows what it says of them as of new ones: that does not rest on their own part in the fit.
    few = api.predict(tmp_path / "few", world / "rows.features", tmp_path / "few.csv", console=QUIET)
    assert np.mean([rows[row.path].label == row.label for row in few if not rows[row.path].answered]) >= alike


@pytest.mark.usefixtures("_many")
def test_a_run_of_many_counts_its_files_once(world, tmp_path, capsys):
    adapt(world, tmp_path / "run", console=Console())
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if " unreadable" in line] == [f"images: {COUNT + 1} files, {COUNT - len(BAD)} ok, {len(BAD) + 1} unreadable"]


@pytest.mark.usefixtures("_many")
def test_a_second_round_of_many(world, tmp_path, capsys):
    """Questions of the first round, answered, teach the second, and the page says what was answered."""
    adapt(world, tmp_path / "run", "consensus")
    asked = api.ask(tmp_path / "run", 6, csv=tmp_path / "questions.csv", console=QUIET)
    assert len(asked) == 6
    labels, header, *lines = truth(world), *(tmp_path / "questions.csv").read_text().splitlines()
    filled = [line.replace(",", f",{labels[line.split(',')[0]]}", 1) for line in lines]
    (tmp_path / "questions.csv").write_text("\n".join([header, *filled, ""]))
    adapt(world, tmp_path / "run-2", "consensus", hints=tmp_path / "questions.csv", console=Console())
    assert "hints: 6 images" in capsys.readouterr().err
    assert sum(row.answered == "yes" for row in read_predictions(tmp_path / "run-2" / "predictions.csv")) == 6
    assert "answer" in (tmp_path / "run-2" / "report.html").read_text()
