"""The cache of encoded images: what it saves, and what it survives."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

import finelens
from finelens.errors import UserError
from finelens.feature_store.crops import Crops
from finelens.feature_store.encoder import FeatureEncoder
from finelens.protocol import TargetFeatures
from finelens.storage import rows as module
from finelens.storage.cache_place import LIMIT_VARIABLE, cache_folder
from finelens.storage.rows import RowCache, bound
from tests.children import Child
from tests.methods.tiny import Pictures, tiny_engine
from tests.toy import QUIET, forwards, options_for

ROWS = {"global": torch.arange(12.0).view(4, 3), "cls": torch.arange(8.0).view(4, 2)}
NAMES = ["a", "b", "c", "d"]


def shards() -> list[Path]:
    return sorted((cache_folder() / "features").glob("*/*.safetensors"))


def write(names=NAMES, rows=ROWS, key="k") -> None:
    with RowCache([key]) as cache:
        cache.add(names, rows)


def read(names, key="k") -> dict[int, dict[str, torch.Tensor]]:
    return dict(RowCache([key]).read(names))


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_rows_come_back_bit_for_bit_by_name():
    write()
    found = read(["d", "x", "a", "d"])
    assert sorted(found) == [0, 2, 3]
    assert torch.equal(found[0]["global"], ROWS["global"][3])
    assert torch.equal(found[3]["cls"], ROWS["cls"][3])
    assert torch.equal(found[2]["cls"], ROWS["cls"][0])
    assert read(NAMES, key="another") == {}


def test_damaged_row_counts_as_absent_and_the_others_do_not():
    write()
    (shard,) = shards()
    # The data of the last tensor by name, "id", ends the file: one of its bytes, then one of the header's.
    size = shard.stat().st_size
    damage(shard, size - 1)
    assert len(read(NAMES)) == 3
    damage(shard, 20)
    assert len(read(NAMES)) in (0, 3)
    shard.write_bytes(shard.read_bytes()[: size // 2])
    assert read(NAMES) == {}
    write()
    assert sorted(read(NAMES)) == [0, 1, 2, 3]


@pytest.mark.parametrize("position", range(0, 700, 7))
def test_no_damage_gives_a_wrong_row(position):
    write()
    (shard,) = shards()
    damage(shard, position % shard.stat().st_size)
    for found, row in read(NAMES).items():
        assert torch.equal(row["global"], ROWS["global"][found])
        assert torch.equal(row["cls"], ROWS["cls"][found])


def test_rows_of_an_interrupted_pass_are_kept():
    def interrupted() -> None:
        with RowCache(["k"]) as cache:
            cache.add(NAMES[:2], {name: rows[:2] for name, rows in ROWS.items()})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(read(NAMES)) == [0, 1]


def test_shards_are_written_on_the_way(monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 2)
    cache = RowCache(["k"])
    cache.add(NAMES[:1], {name: rows[:1] for name, rows in ROWS.items()})
    assert read(NAMES) == {}
    cache.add(NAMES[1:2], {name: rows[1:2] for name, rows in ROWS.items()})
    # Killed here: nothing was closed.
    assert sorted(read(NAMES)) == [0, 1]


def test_small_shards_are_joined(monkeypatch):
    monkeypatch.setattr(module, "SMALL_SHARDS", 5)
    for i in range(7):
        write([str(i)], {name: rows[:1] + i for name, rows in ROWS.items()})
    assert len(shards()) <= 6
    found = read([str(i) for i in range(7)])
    assert [found[i]["cls"][0].item() for i in range(7)] == list(range(7))


def test_what_was_used_longest_ago_goes_first():
    for key in ("old", "used", "new"):
        write(key=key)
    for age, path in enumerate(shards()):
        os.utime(path, (1000 - age, 1000 - age))
    read(NAMES, key="old")
    size = shards()[0].stat().st_size
    bound(cache_folder() / "features", int(1.5 * size))
    assert len(shards()) == 1
    assert len(read(NAMES, key="old")) == 4
    leftover = shards()[0].parent / ".finelens-1.tmp"
    leftover.touch()
    bound(cache_folder() / "features", size)
    assert leftover.exists()
    os.utime(leftover, (time.time() - 2 * 24 * 3600,) * 2)
    bound(cache_folder() / "features", size)
    assert not leftover.exists()
    assert len(shards()) == 1


@pytest.mark.parametrize("limit", ["0", "1e-9"])
def test_limit_of_nothing_keeps_nothing(monkeypatch, limit):
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    write()
    assert shards() == []


def test_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(UserError, match="FINELENS_CACHE_GB must be a number of gigabytes, got 'much'"):
        RowCache(["k"])


def test_cache_that_cannot_be_written_is_said_once_and_costs_nothing(tmp_path, monkeypatch, tiny_vit, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "file"))
    engine = tiny_engine(tiny_vit)
    assert len(encoder(engine).centre(Pictures(5), QUIET, "x").cls) == 5
    assert capsys.readouterr().err.count("features are not kept for the next run") == 1


def encoder(engine) -> FeatureEncoder:
    return FeatureEncoder(engine, 448)


def same(a: TargetFeatures, b: TargetFeatures) -> bool:
    return torch.equal(a.global_, b.global_) and torch.equal(a.cls, b.cls)


def test_every_image_is_encoded_once_whatever_was_encoded_before(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(37)
    uncached = engine.features([torch.stack([view for _, views in _views(engine, pictures) for view in views])])
    some = Pictures(37)
    some.images, some.ids = pictures.images[5:18], pictures.ids[5:18]
    before = engine.no_grad_forwards
    part = encoder(engine).centre(some, QUIET, "x")
    assert engine.no_grad_forwards - before == 13
    mixed = encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards - before == 37
    assert same(mixed, encoder(engine).centre(pictures, QUIET, "x"))
    assert engine.no_grad_forwards - before == 37
    assert torch.equal(mixed.cls[5:18], part.cls)
    # The whole set at once, as it is without a cache: the same bits.
    _forget()
    assert same(mixed, encoder(engine).centre(pictures, QUIET, "x"))
    torch.testing.assert_close(mixed.global_, uncached.global_)
    torch.testing.assert_close(mixed.cls, uncached.cls)


def _views(engine, pictures):
    from finelens.images.batches import centre_batches

    return centre_batches(pictures, engine.backbone.preprocess, 8)


def _forget() -> None:
    for shard in shards():
        shard.unlink()


def test_exact_duplicates_share_a_row(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(3)
    encoder(engine).centre(pictures, QUIET, "x")
    pictures.ids = ["0000", "0000-1", "0000-2"]
    pictures.images = pictures.images[:1].expand(3, -1, -1, -1)
    features = encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 3
    assert torch.equal(features.cls[0], features.cls[2])


def test_damaged_entry_is_computed_again(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(20)
    first = encoder(engine).centre(pictures, QUIET, "x")
    (shard,) = shards()
    damage(shard, shard.stat().st_size - 5000)
    assert same(first, encoder(engine).centre(pictures, QUIET, "x"))
    assert engine.no_grad_forwards == 21


def test_another_reader_of_photographs_shares_nothing(tiny_vit, monkeypatch):
    """It may give other pixels of the same bytes, as another version of rawpy does."""
    engine, pictures = tiny_engine(tiny_vit), Pictures(4)
    encoder(engine).centre(pictures, QUIET, "x")
    encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 4
    monkeypatch.setattr("finelens.images.known.installed_versions", lambda names: tuple(f"{name} another" for name in names))
    encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 8


def test_other_weights_precision_or_size_share_nothing(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(4)
    encoder(engine).centre(pictures, QUIET, "x")
    FeatureEncoder(engine, 300).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 8
    parameter = next(iter(engine.backbone.tunable("norm").values()))
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter[0] += 1e-3
    encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 12
    with torch.no_grad():
        parameter.copy_(kept)
    encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 12
    double = tiny_engine(tiny_vit, torch.float64)
    assert encoder(double).centre(pictures, QUIET, "x").cls.dtype is torch.float64
    assert double.no_grad_forwards == 4


def test_patches_bring_the_features_along(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(18)
    found = {}
    for _ in range(2):
        for positions, rows in encoder(engine).stream(pictures, QUIET, patches=True):
            found.update({position: rows["patches"][i] for i, position in enumerate(positions)})
    assert engine.no_grad_forwards == 18
    centre = encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 18
    expected = engine.encode_frozen(torch.cat([views for _, views in _views(engine, pictures)]), patches=True)
    torch.testing.assert_close(torch.stack([found[i] for i in range(18)]), expected.patches)
    torch.testing.assert_close(centre.global_, expected.global_)
    size = sum(shard.stat().st_size for shard in shards())
    list(encoder(engine).stream(pictures, QUIET, patches=True))
    assert sum(shard.stat().st_size for shard in shards()) == size


def test_crops_are_drawn_and_encoded_once(tiny_vit):
    engine, pictures = tiny_engine(tiny_vit), Pictures(5)

    def crops(**options):
        rows = {
            position: values["global"][i]
            for positions, values in encoder(engine).stream_crops(pictures, Crops(**options), QUIET)
            for i, position in enumerate(positions)
        }
        return torch.stack([rows[i] for i in range(5)])

    first = crops(count=3)
    assert first.shape == (5, 3, 48)
    assert torch.equal(first, crops(count=3))
    assert engine.no_grad_forwards == 15
    assert not torch.equal(first, crops(count=3, seed=1))
    assert engine.no_grad_forwards == 30


WRITER = """
import sys, torch
from pathlib import Path
from finelens.feature_store.encoder import FeatureEncoder
from tests.methods.tiny import Pictures, tiny_engine
from tests.toy import QUIET
import finelens.storage.rows as cache
cache.SHARD_ROWS = 4
torch.set_num_threads(1)
engine = tiny_engine(Path(sys.argv[1]))
if len(sys.argv) > 2:
    encode, done = engine.encode_each, []
    def slow(images, **given):
        done.append(1)
        if len(done) > 1:
            print("ready", flush=True)
            import time; time.sleep(60)
        return encode(images, **given)
    engine.encode_each = slow
FeatureEncoder(engine, 448).centre(Pictures(100), QUIET, "x")
"""


def _writer(*arguments: object) -> Child:
    return Child(["-c", WRITER, *arguments])


def test_two_writers_and_a_killed_one(tiny_vit):
    killed = _writer(tiny_vit, "slow")
    while "ready" not in killed.said().out:
        assert killed.poll() is None, killed.said().err
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    engine, pictures = tiny_engine(tiny_vit), Pictures(100)
    assert len(list(RowCache([*encoder(engine).key, "centre"]).read(pictures.ids))) == 64
    writers = [_writer(tiny_vit) for _ in range(2)]
    assert [(writer.communicate().err, writer.returncode) for writer in writers] == [("", 0)] * 2
    together = encoder(engine).centre(pictures, QUIET, "x")
    assert engine.no_grad_forwards == 0
    _forget()
    assert same(together, encoder(engine).centre(pictures, QUIET, "x"))


def adapt(tmp_path: Path, name: str, photos, classes, backbone, method="stata", verb=finelens.adapt):
    verb(photos, classes, tmp_path / name, method=method, backbone=f"local:{backbone}", options=options_for(method), console=QUIET)
    return forwards(tmp_path / name)[0], (tmp_path / name / "predictions.csv").read_bytes()


def test_runs_over_encoded_photographs_cost_no_forward(tmp_path, photos, classes, backbone):
    first = adapt(tmp_path, "a", photos, classes, backbone)
    assert first[0] == 24
    assert adapt(tmp_path, "b", photos, classes, backbone) == (0, first[1])
    assert adapt(tmp_path, "c", photos, classes, backbone, "zero-shot", finelens.zero_shot)[0] == 0
    # Two epochs of views of its own, and the adapted tower at the end; the first look is spared.
    assert adapt(tmp_path, "d", photos, classes, backbone, "microclip")[0] == 2 * 24 * 9 + 24
    classifier = finelens.load(tmp_path / "a")
    engine = classifier.model.engine
    assert len(classifier.predict_proba(photos)) == 24
    assert engine.no_grad_forwards == 0
    rows = finelens.predict(tmp_path / "a", photos, tmp_path / "new.csv", console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == first[1]
    assert len(rows) == 24


def test_prediction_of_an_adapted_tower_takes_the_unadapted_one_from_the_cache(tmp_path, photos, classes, tiny_vit):
    adapt(tmp_path, "a", photos, classes, tiny_vit, "microclip")
    classifier = finelens.load(tmp_path / "a")
    found = classifier.predictions(photos)
    assert classifier.model.engine.no_grad_forwards == 24
    _forget()
    again = classifier.predictions(photos)
    assert classifier.model.engine.no_grad_forwards == 24 + 48
    assert torch.equal(found.logits["logits"], again.logits["logits"])
    assert torch.equal(found.zero_shot["templates"], again.zero_shot["templates"])
