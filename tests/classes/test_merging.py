"""Hints files of several people: joined, contradictions shown, and who said what."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import finelens
from finelens.classes.hints import how_given, no_tests
from finelens.classes.merging import merge, merge_hints, merged_csv
from finelens.classes.names import read_class_file
from finelens.cli import main
from finelens.core.console import Console
from finelens.errors import UserError
from tests.toy import QUIET


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {
        "anna.csv": ["a.jpg,siamese cat", "b.jpg,tabby cat", "c.jpg,", "d.jpg,owl", "e.jpg,?"],
        "ben.csv": ["./a.jpg,Siamese_Cat", "b.jpg,siamese cat", "c.jpg,none", "d.jpg,owl"],
        "cleo.csv": ["b.jpg,lynx", "d.jpg,tabby cat", "f.jpg,=sum"],
    }
    for name, lines in rows.items():
        Path(name).write_text("path,label\n" + "\n".join(lines) + "\n")
    return [Path(name) for name in rows]


def test_what_is_agreed_is_kept_with_who_said_it(files):
    merged = merge(files)
    assert merged.answers == {
        "a.jpg": ("siamese cat", ("anna.csv", "ben.csv")),
        "c.jpg": ("", ("anna.csv", "ben.csv")),
        "d.jpg": ("owl", ("anna.csv", "ben.csv")),
        "f.jpg": ("=sum", ("cleo.csv",)),
    }
    assert merged.names == ["=sum", "owl", "siamese cat"]


def test_contradictions_name_file_line_and_both_answers(files):
    first, second = merge(files).contradictions
    assert str(first) == ("b.jpg: 'tabby cat' in anna.csv, line 3, but 'siamese cat' in ben.csv, line 3, but 'lynx' in cleo.csv, line 2; left out")
    assert (second.path, second.kept) == ("d.jpg", "owl")
    assert str(second).endswith("kept: 'owl', which most say")
    # Two against two are no majority.
    assert merge(files[:2]).contradictions[0].kept is None


def test_a_merged_file_is_a_hints_file_again(files):
    Path("all.csv").write_text(merged_csv(merge(files)))
    with open("all.csv", newline="") as file:
        assert next(csv.reader(file)) == ["path", "label", "by", "source", "group"]
    assert {path: label for path, (label, _) in merge([Path("all.csv")]).answers.items()} == {
        path: label for path, (label, _) in merge(files).answers.items()
    }


def test_the_list_holds_names_that_look_like_comments(tmp_path):
    names = ["# 7 oak", "#7 oak", "\\# 5", "\\\\#", "# class names from answers", "## ", "C#"]
    hints = tmp_path / "a.csv"
    with open(hints, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((f"{i}.jpg", name) for i, name in enumerate(names))])
    merged = merge_hints([hints], tmp_path / "all.csv", classes=tmp_path / "classes.txt", console=QUIET)
    assert read_class_file(tmp_path / "classes.txt") == merged.names
    assert sorted(merged.names) == sorted(name.strip() for name in names)


def test_the_command_says_what_contradicts_and_writes_the_rest(files, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["merge-hints", *map(str, files), "--out", "all.csv", "--classes", "classes.txt"])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert "b.jpg: 'tabby cat' in anna.csv, line 3" in said
    assert "4 answers of 3 files" in said
    assert said.splitlines()[-1] == "finelens adapt PHOTOS --classes classes.txt --hints all.csv --out run"
    assert read_class_file("classes.txt") == ["=sum", "owl", "siamese cat"]
    assert "a.jpg,siamese cat,anna.csv;ben.csv,," in Path("all.csv").read_text().splitlines()


def test_a_file_of_the_answers_is_not_written_over(files):
    with pytest.raises(UserError, match="one of the files to merge"):
        finelens.merge_hints(files, files[0], console=QUIET)


def test_what_was_answered_as_one_of_a_group_stays_so(files):
    Path("page.csv").write_text("path,label,source,by\ng.jpg,owl,group,anna\nh.jpg,owl,photo,anna\n")
    Path("all.csv").write_text(merged_csv(merge([*files, Path("page.csv")])))
    assert no_tests(Path("all.csv")) == {"g.jpg"}
    assert no_tests(Path("gone.csv")) is None


def test_groups_of_several_people_stay_groups(tmp_path, monkeypatch):
    """Groups with a photograph in common are one: its answers would give each other away, and it has one middle."""
    monkeypatch.chdir(tmp_path)
    head = "path,label,source,by,group\n"
    Path("a.csv").write_text(f"{head}a.jpg,owl,group,anna,a.jpg\nb.jpg,owl,group,anna,a.jpg\nz.jpg,owl,photo,anna,\n")
    Path("b.csv").write_text(f"{head}c.jpg,owl,group,ben,./c.jpg\nb.jpg,owl,group,ben,c.jpg\nz.jpg,owl,group,ben,y.jpg\nx.jpg,owl,group,ben,y.jpg\n")
    Path("old.csv").write_text("path,label,source,by\nz.jpg,owl,group,cleo\nw.jpg,owl,group,cleo\n")
    Path("all.csv").write_text(merged_csv(merge([Path("a.csv"), Path("b.csv"), Path("old.csv")])))
    told = how_given(Path("all.csv"))
    groups = {path: how.group for path, how in told.items()}
    assert groups == {"a.jpg": "a.jpg", "b.jpg": "a.jpg", "c.jpg": "a.jpg", "z.jpg": "y.jpg", "x.jpg": "y.jpg", "w.jpg": ""}
    assert {path for path, how in told.items() if how.tests(path)} == {"a.jpg"}
    merged = {path: how.source for path, how in told.items()}
    assert set(merged.values()) == {"group"}


def test_unknown_becomes_no_class_and_many_blanks_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("anna.csv").write_text("path,label\na.jpg,owl\nb.jpg,unknown\nc.jpg,\n")
    Path("ben.csv").write_text("path,label\nd.jpg,owl\ne.jpg,\nf.jpg,\n")
    with pytest.raises(UserError, match=r"anna\.csv', line 3: 'unknown' is no name of a class; write \?.*leave out --classes"):
        merge_hints(["anna.csv", "ben.csv"], "all.csv", classes="classes.txt", console=QUIET)
    assert not Path("all.csv").exists()
    assert not Path("classes.txt").exists()
    merge_hints(["anna.csv", "ben.csv"], "all.csv", console=Console())
    said = capsys.readouterr().err
    assert "'unknown' is no name of a class" in said
    assert "adapt refuses it unless the class list has it" in said
    assert "ben.csv: 2 photographs have an empty label" in said
    assert "anna.csv: " not in said
