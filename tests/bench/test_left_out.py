"""What lies in a data set's folder but is in no part, has no class or cannot be read: counted and named, for every reader."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet as parquet

from finelens.bench.rows.matrix import Plan, run
from finelens.bench.rows.protocols import parse_protocol
from finelens.bench.rows.results import ResultsFile
from finelens.bench.sets.data import read_folder
from finelens.bench.sets.drawn import read_drawn
from finelens.bench.sets.find import find_data
from finelens.core.console import Console
from tests.bench.small_files import jpeg
from tests.bench.test_imagenet_sets import write_imagenet
from tests.bench.test_sets import labels, picture
from tests.bench.world import write_set


def test_the_row_and_the_terminal_say_it(tmp_path, tiny_vit, capsys):
    folder = write_set(tmp_path / "toy", train=1, test=2)
    for path in ("train/notes.txt", "test/notes.txt", "test/readme.txt"):
        (folder / path).write_text("about these")
    (folder / "test/A/bad.png").write_bytes(b"")
    (folder / "train/A/bad.png").write_bytes(b"")
    plan = Plan((parse_protocol("transductive"),), ("zero-shot",), (0,), f"local:{tiny_vit}", "full", ("training.precision=float32",))
    out = ResultsFile(tmp_path / "r.jsonl")
    assert run(plan, [lambda: read_folder(folder)], ["toy"], out, Console()) == 0
    row = json.loads((tmp_path / "r.jsonl").read_text())
    lines = ["1 files of train in no class folder, first notes.txt", "2 files of test in no class folder, first notes.txt"]
    assert row["source"]["left_out"] == lines
    # Eight images with a class, a bad one, and two texts that cannot be read either.
    assert (row["source"]["test"], row["split"]["test"], row["split"]["unread"], row["measures"]["n"]) == (11, 8, 3, 8)
    said = capsys.readouterr().err
    assert all(f"toy: left out: {line}" in said for line in lines)
    assert "3 files cannot be read as images and are in no number, first A/bad.png" in said


def test_nothing_is_said_of_a_whole_set(toy_set):
    assert read_folder(toy_set).left_out == ()


def test_a_part_without_classes_has_none_to_miss(tmp_path):
    folder = write_set(tmp_path / "toy", train=1, test=1)
    for path in sorted((folder / "train").glob("*/*")):
        path.rename(folder / "train" / f"{path.parent.name}_{path.name}")
        path.parent.rmdir()
    assert read_folder(folder).left_out == ()


def test_files_that_no_metadata_lists(tmp_path):
    for part in ("train", "test"):
        for name in ("a.png", "b.png", "c.png"):
            picture(tmp_path / part / name)
        (tmp_path / part / "metadata.csv").write_text("file_name,label\na.png,dog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert labels(data.test) == [0]
    assert data.left_out == tuple(f"2 files of {part} that its metadata does not list, first {part}/b.png" for part in ("train", "test"))


def test_rows_of_a_table_without_a_class(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    for part, classes in (("train", [None, None]), ("test", [1, None, 0])):
        table = pyarrow.table(
            {"image": [{"bytes": jpeg(i), "path": ""} for i in range(len(classes))], "label": pyarrow.array(classes, pyarrow.int64())}
        )
        parquet.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / f"{part}-00000-of-00001.parquet"
        )
    data = find_data(str(tmp_path), None)[1]()
    assert data.left_out == ("1 rows of test without a class, first test-00000-of-00001.parquet[0][1].jpg",)


def test_authors_folders(tmp_path):
    folder = write_imagenet(tmp_path)
    (folder / "val/readme.txt").write_text("notes")
    (folder / "train/more").mkdir()
    picture(folder / "train/more/0.png")
    assert find_data("imagenet", tmp_path)[1]().left_out == (
        "1 files of train in no class folder, first more/0.png",
        "1 files of val in no class folder, first readme.txt",
    )
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "stray.png", "b/.hidden"):
        picture(tmp_path / "drawn" / name) if name.endswith("png") else (tmp_path / "drawn" / name).write_text("")
    left_out = read_drawn("drawn", tmp_path / "drawn", 50).left_out
    assert left_out == ("1 files in no class folder, first stray.png", "left out: 1 hidden or left by a system (first b/.hidden)")
