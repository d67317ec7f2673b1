"""``predict`` at scale: rows on the disk as they come, going on after an end at any moment, parts, shards of photographs."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from finelens import api
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.images.store import load_images
from finelens.protocol import ImageRecord
from finelens.runs import predict as groups
from finelens.runs.sets import set_sizes, sets_header, sets_text
from finelens.runs.shard import Shard, join_parts
from finelens.runs.sources import source_at
from finelens.storage.files import text_bytes
from finelens.storage.predictions import predictions_header
from tests.solvers.data import cloud
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

GROUP = 5


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> Path:
    """``run`` on 24 photographs, one of which is damaged, and ``whole.csv`` of them, in groups of five."""
    root = tmp_path_factory.mktemp("to-file")
    photos = write_photos(root / "photos")
    (photos / CLASSES[1] / "3.png").write_bytes(b"no picture")
    classes = write_classes(root / "classes.txt")
    options = options_for("zero-shot")
    api.zero_shot(photos, classes, root / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "GROUP", GROUP)
        patch.setattr("finelens.runs.to_file.GROUP", GROUP)
        api.predict(root / "run", photos, root / "whole.csv", console=QUIET)
    return root


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(groups, "GROUP", GROUP)
    monkeypatch.setattr("finelens.runs.to_file.GROUP", GROUP)


def killed_after(monkeypatch, count: int) -> list[int]:
    """Ends the process, as far as Python can, when group ``count`` is decoded; gives the sizes of what was decoded."""
    sizes: list[int] = []

    def loading(items, limits, progress):
        if len(sizes) == count:
            raise Killed
        sizes.append(len(items))
        return load_images(items, limits, progress=progress)

    monkeypatch.setattr(groups, "load_images", loading)
    return sizes


def test_progress_is_told_inside_of_groups(world, tmp_path):
    steps: list[float] = []

    class Listening(Console):
        def progress(self, total, what, unit="image"):
            return nullcontext(SimpleNamespace(update=steps.append))

    api.predict(world / "run", world / "photos", tmp_path / "new.csv", console=Listening(enabled=False))
    assert sum(steps) == pytest.approx(24)
    # One at the end of each of five groups, and one for each photograph that was read.
    assert len(steps) > 5 + 24
    assert sum(step > 0 for step in steps) > 5


def test_a_killed_command_goes_on_with_the_same_bytes(world, tmp_path, monkeypatch):
    target, part = tmp_path / "new.csv", tmp_path / "new.csv.part"
    killed_after(monkeypatch, 3)
    with pytest.raises(Killed):
        api.predict(world / "run", world / "photos", target, console=QUIET)
    assert not target.exists()
    whole = (world / "whole.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert part.read_bytes() == b"".join(lines[: 1 + 3 * GROUP])
    # What a dying process wrote behind the last whole block is cut off.
    with part.open("ab") as file:
        file.write(b"half a li")
    sizes = killed_after(monkeypatch, 99)
    api.predict(world / "run", world / "photos", target, console=QUIET)
    assert sizes == [5, 4]
    assert target.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_photographs_of_tiles_are_counted_once_by_a_command_that_went_on(world, tmp_path, monkeypatch, capsys):
    for stop in (3, 99):
        killed_after(monkeypatch, stop)
        with nullcontext() if stop == 99 else pytest.raises(Killed):
            api.predict(world / "run", world / "photos", tmp_path / "new.csv", tiles="2x1", console=Console())
    # 15 rows: five photographs, each with two tiles.
    assert "24 files (5 by an earlier command): 23 ok, 1 corrupt" in capsys.readouterr().err


@pytest.mark.parametrize("calibrated", [False, True])
def test_counts_of_a_command_that_went_on_are_those_of_all_rows(world, tmp_path, monkeypatch, capsys, calibrated):
    """The damaged file is among the rows of the command that was killed."""
    options = {}
    if calibrated:
        lines = [f"{name}/{number}.png,{name}\n" for name in CLASSES for number in (0, 1)]
        (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines))
        options = {"calibrate": tmp_path / "labels.csv", "coverage": 0.8}
    said = []
    # Two groups of labelled photographs are asked about first.
    for stop in (99, 3 + 2 * calibrated, 99):
        killed_after(monkeypatch, stop)
        with nullcontext() if stop == 99 else pytest.raises(Killed):
            target = tmp_path / ("whole.csv" if not said else "new.csv")
            api.predict(world / "run", world / "photos", target, console=Console(), **options)
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith(("24 files", "conformal", "noted", "  "))])
    whole, killed, last = said
    assert not killed
    assert whole[-1] == "24 files: 23 ok, 1 corrupt"
    assert len(whole) == 1 + calibrated
    assert last == [*whole[:-1], "24 files (15 by an earlier command): 23 ok, 1 corrupt"]


def test_how_many_are_right_is_said_of_enough_photographs(world, tmp_path, capsys):
    rows = api.predict(world / "run", world / "photos", tmp_path / "new.csv", console=Console())
    said = capsys.readouterr().err
    assert f"about {np.mean([row.probability for row in rows if row.label is not None]):.0%} right by its own probabilities" in said
    assert "other estimates" not in said
    few = write_photos(tmp_path / "photos", CLASSES[:2])
    api.predict(world / "run", few, tmp_path / "few.csv", console=Console())
    assert "by its own probabilities" not in capsys.readouterr().err


def test_answers_are_replaced_on_request_only(world, tmp_path, monkeypatch):
    photos, target = write_photos(tmp_path / "photos", CLASSES[:1]), tmp_path / "new.csv"
    api.predict(world / "run", photos, target, console=QUIET)
    before = target.read_bytes()
    with pytest.raises(UserError, match=r"new\.csv exists already; give another --csv, or --overwrite to replace it .*overwrite=True"):
        api.predict(world / "run", world / "photos", target, console=QUIET)
    assert target.read_bytes() == before
    # Of another finelens, whose rows this one does not know: there may be answers in it.
    other = tmp_path / "other.csv"
    other.write_text(target.read_text().replace(",ok,", ",fine,"))
    with pytest.raises(UserError, match=r"other\.csv exists already; give another --csv, or --overwrite to replace it"):
        api.predict(world / "run", photos, other, console=QUIET)
    # Stopped on the way, it goes on without being asked again.
    killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        api.predict(world / "run", world / "photos", target, overwrite=True, console=QUIET)
    assert target.read_bytes() == before
    killed_after(monkeypatch, 99)
    api.predict(world / "run", world / "photos", target, console=QUIET)
    assert target.read_bytes() == (world / "whole.csv").read_bytes()


def test_what_lies_beside_replaced_answers_goes_with_them(world, tmp_path):
    given, target = (world / "run", world / "photos"), tmp_path / "new.csv"
    api.predict(*given, target, tiles="2x1", console=QUIET)
    (tmp_path / "new_groups.csv").write_text("path,group\r\nmine,1\r\n")
    (tmp_path / "new_ranks.csv").write_text("path,family,family_probability,sure_rank,sure_name,sure_probability,status\r\n")
    api.predict(*given, target, overwrite=True, console=QUIET)
    # What something else wrote stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "new_groups.csv"]
    assert target.read_bytes() == (world / "whole.csv").read_bytes()


def test_sizes_of_sets_of_very_many_classes_are_read(tmp_path):
    """Such a cell is longer than the csv module reads, and a command that went on ended in a traceback."""
    records = [ImageRecord('a, "b".png', "ok"), ImageRecord("=c.png", "corrupt"), ImageRecord("d.png", "ok")]
    sets = [[f"class {i:05d}" for i in range(20_000)], [], ["x", "y,1"]]
    (tmp_path / "new.sets.csv").write_bytes(text_bytes("\ufeff" + sets_header() + sets_text(records, sets)))
    assert set_sizes(tmp_path / "new.sets.csv") == {20_000: 1, 2: 1}


def test_sets_of_a_whole_that_was_joined_before_go_with_it(world, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{name}/{number}.png,{name}\n" for name in CLASSES for number in (0, 1)))
    given, whole = (world / "run", world / "photos", tmp_path / "new.csv"), tmp_path / "whole.csv"
    parts = [api.predict_to(*given, shard="1/1", calibrate=tmp_path / "labels.csv", coverage=0.8, console=QUIET)]
    join_parts(parts, whole, QUIET)
    assert (tmp_path / "whole.sets.csv").is_file()
    api.predict_to(*given, shard="1/1", overwrite=True, console=QUIET)
    join_parts(parts, whole, QUIET)
    assert not list(tmp_path.glob("*.sets.csv"))


def test_of_several_processes_that_were_stopped_some_had_finished(world, tmp_path):
    given = (world / "run", world / "photos", tmp_path / "new.csv")
    first = api.predict_to(*given, shard="1/2", console=QUIET)
    with pytest.raises(UserError, match="exists already"):
        api.predict_to(*given, shard="1/2", console=QUIET)
    (tmp_path / "new-00002-of-00002.csv.part").touch()
    before = first.read_bytes()
    api.predict_to(*given, shard="1/2", console=QUIET)
    assert first.read_bytes() == before


@pytest.mark.parametrize("what", ["option", "photographs", "cut", "pillow", "reader"])
def test_another_question_begins_anew(world, tmp_path, monkeypatch, what):
    photos = write_photos(tmp_path / "photos", CLASSES[:2])
    target = tmp_path / "new.csv"
    killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        api.predict(world / "run", photos, target, console=QUIET)
    if what == "photographs":
        (photos / CLASSES[0] / "0.png").write_bytes((photos / CLASSES[0] / "1.png").read_bytes() + b" ")
    # Another version may read the rest otherwise.
    if what == "pillow":
        monkeypatch.setattr("finelens.runs.to_file.computing_versions", lambda: ("pillow another",))
    if what == "reader":
        monkeypatch.setattr("finelens.runs.to_file.reader_versions", lambda: ("rawpy another",))
    if what == "cut":
        part = tmp_path / "new.csv.part"
        part.write_bytes(part.read_bytes()[:-1])
    sizes = killed_after(monkeypatch, 99)
    api.predict(world / "run", photos, target, zero_shot=what != "option", console=QUIET)
    assert sizes == [5, 5, 2]


def test_without_zero_shot_the_column_is_empty_and_nothing_else_changes(world, tmp_path):
    rows = api.predict(world / "run", world / "photos", tmp_path / "new.csv", zero_shot=False, console=QUIET)
    before = api.read_predictions(world / "whole.csv")
    assert {row.zero_shot_class for row in rows} == {None}
    assert {row.zero_shot_class for row in before if row.status == "ok"} <= set(CLASSES)
    assert [(row.path, row.label, row.top5, row.status) for row in rows] == [(row.path, row.label, row.top5, row.status) for row in before]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_join_to_the_bytes_of_the_whole(world, tmp_path, count):
    parts = [
        api.predict_to(world / "run", world / "photos", tmp_path / "new.csv", shard=f"{number}/{count}", console=QUIET)
        for number in range(1, count + 1)
    ]
    assert parts[0].name == f"new-00001-of-{count:05d}.csv"
    if count > 1:
        with pytest.raises(UserError, match=f"part 1/{count} is not among the files"):
            api.join(parts[1:], tmp_path / "new.csv", console=QUIET)
    api.join(parts[::-1], tmp_path / "new.csv", console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == (world / "whole.csv").read_bytes()


def test_parts_that_are_not_of_one_whole_are_not_joined(tmp_path):
    parts = [tmp_path / "a-00001-of-00002.csv", tmp_path / "a-00002-of-00002.csv", tmp_path / "b-00002-of-00002.csv"]
    for part in parts:
        part.write_bytes(text_bytes(predictions_header()))
    with pytest.raises(UserError, match="parts of a and of b; give all parts of one whole"):
        api.join([parts[0], parts[2]], tmp_path / "new.csv", console=QUIET)
    # Sets beside some of them only would be lost without a word.
    (tmp_path / "a-00001-of-00002.sets.csv").write_bytes(text_bytes(sets_header()))
    with pytest.raises(UserError, match=r"a-00002-of-00002\.sets\.csv is missing"):
        api.join(parts[:2], tmp_path / "new.csv", console=QUIET)
    assert not (tmp_path / "new.csv").exists()
    (tmp_path / "a-00001-of-00002.sets.csv").unlink()
    api.join(parts[:2], tmp_path / "new.csv", console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == parts[0].read_bytes()


def test_a_path_in_a_list_ends_at_the_end_of_its_line_only(world, tmp_path):
    photo = tmp_path / "a\u2028b\x85c.png"
    photo.write_bytes((world / "photos" / CLASSES[0] / "0.png").read_bytes())
    (tmp_path / "list.txt").write_text(f"{photo}\r\n\n{photo}\n", encoding="utf-8", newline="")
    rows = api.predict(world / "run", tmp_path / "list.txt", tmp_path / "new.csv", console=QUIET)
    assert [row.status for row in rows] == ["ok", "ok"]


def test_a_list_that_leads_nowhere_is_refused(world, tmp_path):
    """As ``ls`` writes it inside the folder: read elsewhere it would give a row of a vanished file for each photograph."""
    (tmp_path / "list.txt").write_text("IMG_1.jpg\nIMG_2.jpg\n")
    with pytest.raises(
        UserError, match=r"list\.txt: nothing it names exists \(IMG_1\.jpg is the first\); relative paths count from the folder where"
    ):
        api.predict(world / "run", tmp_path / "list.txt", tmp_path / "new.csv", console=QUIET)
    assert not (tmp_path / "new.csv").exists()


def test_parts_of_another_ending_join(world, tmp_path):
    for number in (1, 2):
        api.predict_to(world / "run", world / "photos", tmp_path / "new.txt", shard=f"{number}/2", console=QUIET)
    api.join(sorted(tmp_path.glob("new-*-of-00002.txt")), tmp_path / "new.txt", console=QUIET)
    assert (tmp_path / "new.txt").read_bytes() == (world / "whole.csv").read_bytes()


@pytest.mark.parametrize(("total", "count"), [(0, 3), (1, 1), (23, 2), (24, 5), (1000, 7)])
def test_shards_cover_all_once_from_multiples_of_a_group(total, count):
    parts = [Shard(number, count).rows(total, GROUP) for number in range(1, count + 1)]
    assert [i for part in parts for i in part] == list(range(total))
    assert all(part.start % GROUP == 0 for part in parts if part)
    whole = [len(part) for part in parts[:-1] if part.stop < total]
    assert not whole or max(whole) - min(whole) <= GROUP


def packed(kind: str, photos: Path, folder: Path) -> list[str]:
    """The photographs in two shards; their names there."""
    files = sorted(photos.rglob("*.png"))
    folder.mkdir()
    names = []
    for number, own in enumerate((files[:10], files[10:])):
        path = folder / f"part-{number}.{kind}"
        contents = [(file.relative_to(photos).as_posix(), file.read_bytes()) for file in own]
        if kind == "parquet":
            table = pyarrow.table({"id": [name for name, _ in contents], "image": [{"bytes": data, "path": "x"} for _, data in contents]})
            parquet.write_table(table, path, row_group_size=4)
            names += [f"{path.name}[{i // 4}][{i % 4}].jpg" for i in range(len(own))]
            continue
        with tarfile.open(path, "w:gz" if kind.lower().endswith("gz") else "w") as archive:
            for name, data in contents:
                for member, content in ((name, data), (f"{name.removesuffix('.png')}.txt", b"a text")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        names += [f"{path.name}/{name}" for name, _ in contents]
    return names


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "TAR.GZ", "Tgz", "parquet"])
def test_photographs_in_shards_are_answered_as_files_are(world, tmp_path, kind, monkeypatch, capsys):
    names = packed(kind, world / "photos", tmp_path / "shards")
    target = tmp_path / "new.csv"
    killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        api.predict(world / "run", tmp_path / "shards", target, console=QUIET)
    killed_after(monkeypatch, 99)
    rows = api.predict(world / "run", tmp_path / "shards", target, console=Console())
    before = api.read_predictions(world / "whole.csv")
    assert [row.path for row in rows] == names
    # Sorted by name in the folder, and so in the shards.
    assert [(row.label, row.top5, row.status) for row in rows] == [(row.label, row.top5, row.status) for row in before]
    assert ("left out: 24 members" in capsys.readouterr().err) == (kind != "parquet")
    first = api.predict(world / "run", next((tmp_path / "shards").glob("part-0*")), tmp_path / "one.csv", console=QUIET)
    assert first == rows[:10]


def test_groups_of_photographs_in_shards(world, tmp_path):
    """Shards were taken for photographs: times of none were found, and a single shard was refused."""
    names = packed("tar", world / "photos", tmp_path / "shards")
    api.predict(world / "run", tmp_path / "shards", tmp_path / "new.csv", group_by="folder", console=QUIET)
    with (tmp_path / "new_groups.csv").open(encoding="utf-8", newline="") as file:
        assert [(row["path"], row["group"]) for row in csv.DictReader(file)] == [(name, name.rpartition("/")[0]) for name in names]
    for photos in (tmp_path / "shards", tmp_path / "shards" / "part-0.tar"):
        api.predict(world / "run", photos, tmp_path / "new.csv", group_by="folder", overwrite=True, console=QUIET)
        for ask in (
            lambda photos=photos: api.predict(world / "run", photos, tmp_path / "never.csv", group_by="time:5", console=QUIET),
            lambda photos=photos: api.adapt(photos, world / "classes.txt", tmp_path / "never", group_by="time:5", console=QUIET),
        ):
            with pytest.raises(UserError, match=r"looks at the times of photographs that are files, and .* holds shards; group by column:FILE"):
                ask()
    assert not (tmp_path / "never").exists()


def test_labelled_photographs_of_shards_are_read_one_at_a_time(world, tmp_path):
    """All bytes of those that labels name were held at once."""
    names = packed("tar", world / "photos", tmp_path / "shards")
    source = source_at(tmp_path / "shards")
    asked: list[int] = []

    class Watched:
        names, files, remarks = source.images.names, source.images.files, ()  # type: ignore[union-attr]

        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, index: int) -> object:
            asked.append(index)
            return source.images[index]  # type: ignore[union-attr]

    chosen = replace(source, images=Watched()).only({names[3], names[20]}).inputs
    assert (len(chosen), asked) == (2, [])
    assert [chosen[0].name, chosen[1].name] == [names[3], names[20]]
    assert asked == [3, 20]


def test_a_parquet_file_without_images_is_refused(world, tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="0 columns could hold the bytes of images"):
        api.predict(world / "run", tmp_path / "x.parquet", tmp_path / "new.csv", console=QUIET)


def test_the_number_of_shards_may_lie_beside_them(world, tmp_path):
    names = packed("tar", world / "photos", tmp_path / "shards")
    (tmp_path / "shards/nshards.txt").write_text("2\n")
    assert [row.path for row in api.predict(world / "run", tmp_path / "shards", tmp_path / "new.csv", console=QUIET)] == names


def test_a_folder_of_shards_and_other_things_is_a_folder_of_files(world, tmp_path):
    packed("tar", world / "photos", tmp_path / "shards")
    (tmp_path / "shards" / "notes.txt").write_text("a text")
    rows = api.predict(world / "run", tmp_path / "shards", tmp_path / "new.csv", console=QUIET)
    assert [(row.path, row.status) for row in rows] == [("notes.txt", "unsupported"), ("part-0.tar", "unsupported"), ("part-1.tar", "unsupported")]


def test_rows_of_features_are_written_in_groups_too(tmp_path, monkeypatch):
    features, prototypes, _ = cloud([8, 5, 6, 4], 12)
    np.save(tmp_path / "X.npy", features)
    np.save(tmp_path / "W.npy", prototypes)
    classes = write_classes(tmp_path / "classes.txt", CLASSES)
    api.adapt(tmp_path / "X.npy", classes, tmp_path / "run", prototypes=tmp_path / "W.npy", method="gda-em", console=QUIET)
    rows = api.predict(tmp_path / "run", tmp_path / "X.npy", tmp_path / "new.csv", console=QUIET)
    answered = groups.predict_store
    sizes = []

    def once(model, store, *given):
        sizes.append(len(store))
        if len(sizes) == 4:
            raise Killed
        return answered(model, store, *given)

    monkeypatch.setattr(groups, "predict_store", once)
    with pytest.raises(Killed):
        api.predict(tmp_path / "run", tmp_path / "X.npy", tmp_path / "again.csv", console=QUIET)
    api.predict(tmp_path / "run", tmp_path / "X.npy", tmp_path / "again.csv", console=QUIET)
    assert sizes == [5, 5, 5, 5, 5, 3]
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()
    assert [row.label for row in rows] == [row.label for row in api.read_predictions(tmp_path / "run" / "predictions.csv")]


def test_a_byte_order_mark_for_spreadsheets(world, tmp_path):
    arguments = (world / "run", world / "photos", tmp_path / "new.csv")
    plain = (world / "whole.csv").read_bytes()
    rows = api.predict(*arguments, csv_bom=True, console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == b"\xef\xbb\xbf" + plain
    assert rows == api.read_predictions(world / "whole.csv")
    # Such a file is one of ours, with the mark or without.
    api.predict(*arguments, overwrite=True, console=QUIET)
    assert (tmp_path / "new.csv").read_bytes() == plain
    api.predict(*arguments, csv_bom=True, overwrite=True, console=QUIET)
    with pytest.raises(UserError, match="--csv-bom would stand in every part"):
        api.predict(*arguments, csv_bom=True, shard="1/2", console=QUIET)


def test_tiles_of_a_killed_command_are_joined_with_those_before_it(world, tmp_path, monkeypatch):
    target, own = tmp_path / "new.csv", tmp_path / "new_tiles.csv"
    given = {"tiles": "2x1", "tile_floor": 0.0, "console": QUIET}
    api.predict(world / "run", world / "photos", target, **given)
    whole = own.read_bytes()
    target.unlink()
    own.unlink()
    sizes = killed_after(monkeypatch, 3)
    with pytest.raises(Killed):
        api.predict(world / "run", world / "photos", target, **given)
    assert not own.exists()
    killed_after(monkeypatch, 100)
    api.predict(world / "run", world / "photos", target, **given)
    assert sum(sizes) == 3 * GROUP
    assert own.read_bytes() == whole


def test_a_table_among_the_photographs_is_refused(world, tmp_path, monkeypatch):
    """The next look took it for a photograph, and a command that went on began anew, as its own part was one more."""
    photos = write_photos(tmp_path / "photos", CLASSES[:2])
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match="lies inside the photographs"):
        api.predict(world / "run", ".", "new.csv", console=QUIET)
    assert sorted(os.listdir(photos)) == sorted(CLASSES[:2])


def test_a_pipe_in_the_place_of_the_table_is_refused_before_the_work(world, tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(UserError, match="is a pipe or a device"):
        api.predict(world / "run", world / "photos", tmp_path / "p.csv", console=QUIET)
    assert os.listdir(tmp_path) == ["p.csv"]
