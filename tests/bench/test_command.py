"""``finelens bench`` as a user runs it."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time

import pytest

from finelens.cli import main
from tests.bench.world import without_times, write_set


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def given(toy_set, tiny_vit, tmp_path):
    protocols = "inductive,transductive,longtail-3,few-1,noise-5"
    return ("bench", "--data", toy_set, "--backbone", f"local:{tiny_vit}", "--methods", "cupl,gda-em", "--protocols", protocols, "--seeds", "0,1")


def lines(path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({json.dumps([row[name] for name in ("data", "protocol", "method", "seed")]) for row in rows}) == len(rows)
    return sorted((without_times(row) for row in rows), key=json.dumps)


def test_bench_and_table(given, call, tmp_path):
    out = tmp_path / "r.jsonl"
    code, _, err = call(*given, "--out", out)
    assert code == 0
    assert len(lines(out)) == 20
    assert "toy         inductive      gda-em       seed 0" in err
    code, text, err = call("bench", "table", out, "--markdown")
    assert (code, err) == (0, "")
    assert text.count("### ") == 5
    assert "| method | toy | mean | worst difference | forwards | s |" in text
    code, text, err = call("bench", "table", out, "--runs", "--methods", "gda-em")
    assert (code, err) == (0, "")
    assert text.count("| gda-em | toy | 0 |") == 5
    assert "cupl" not in text
    code, _, err = call("bench", "table", out, "--runs", "--measure", "ece")
    assert code == 2
    assert "leave out --measure" in err


def process(arguments, out) -> multiprocessing.Process:
    """The command in a process of its own, which need not import everything again."""
    command = [str(argument) for argument in (*arguments, "--out", out)]
    worker = multiprocessing.get_context("fork").Process(target=main, args=(command,))
    worker.start()
    return worker


def test_killed_in_the_middle_and_started_again_it_ends_in_the_same_file(given, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    first, killed = process(given, whole), process(given, broken)
    while not (broken.exists() and broken.read_bytes().count(b"\n") >= 4):
        time.sleep(0.001)
        assert killed.is_alive()
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert 4 <= broken.read_bytes().count(b"\n") < 20
    # Two processes finish together what the third began.
    workers = [first, *(process(given, broken) for _ in range(2))]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert lines(broken) == lines(whole)


def test_rows_of_other_code_are_kept_and_counted(given, call, tmp_path):
    out = tmp_path / "r.jsonl"
    small = (*given[:-4], "--protocols", "inductive", "--out", out)
    assert "rows that are there already" not in call(*small)[2]
    written = out.read_text()
    assert "rows that are there already" not in call(*small)[2]
    first, second = written.splitlines()
    old = json.loads(first)
    # A row from before the digest, one of other code, and one that nobody asks for.
    del old["versions"]["code"]
    other = {**json.loads(second), "seed": 7}
    other["versions"]["code"] = "0" * 16
    other["config"]["seed"] = 7
    out.write_text("".join(json.dumps(row) + "\n" for row in (old, json.loads(second), other)))
    code, _, err = call(*small)
    assert code == 0
    assert "1 of the 2 rows that are there already were computed by other code, versions or threads; they are kept" in err
    # Deleting the line is what makes the row again.
    out.write_text(second + "\n")
    assert "rows that are there already" not in call(*small)[2]
    assert lines(out) == sorted((without_times(json.loads(line)) for line in written.splitlines()), key=json.dumps)


def test_data_by_name(given, call, toy_set, tmp_path, monkeypatch):
    arguments = [argument if argument != toy_set else "toy" for argument in given]
    code, _, err = call(*arguments, "--out", tmp_path / "r.jsonl")
    assert code == 2
    assert err.startswith("finelens: --data toy: there is no such folder")
    monkeypatch.setenv("FINELENS_DATA", str(toy_set.parent))
    assert call(*arguments, "--out", tmp_path / "r.jsonl")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--methods", "gda-en"), "unknown method 'gda-en'"),
        (("--protocols", "tail"), "unknown protocol 'tail'"),
        (("--seeds", "x"), "--seeds: 'x' is not a number"),
        (("--seeds", ","), "--seeds is empty"),
        (("--set", "method.nothing=1"), "unknown option method.nothing"),
        (("--out", "/nowhere/r.jsonl"), "does not exist"),
    ],
)
def test_mistakes_are_one_line(given, call, tmp_path, change, message):
    code, out, err = call(*given, "--out", tmp_path / "r.jsonl", *change)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_bench_without_data_says_what_it_needs(call):
    code, _, err = call("bench")
    assert code == 2
    assert "--data FOLDER and --out FILE" in err


def test_a_file_of_something_else_is_left_alone(given, call, tmp_path):
    """A JSON document of one line without an end looks like a result that a killed process began."""
    out = tmp_path / "mine.json"
    out.write_text('{"my": "work"}')
    code, _, err = call(*given, "--out", out)
    assert code == 2
    assert "was not written by finelens" in err
    assert out.read_text() == '{"my": "work"}'


def test_a_set_without_parts_is_refused(given, call, tmp_path, toy_set):
    (tmp_path / "empty").mkdir()
    arguments = [argument if argument != toy_set else tmp_path / "empty" for argument in given]
    code, _, err = call(*arguments, "--out", tmp_path / "r.jsonl")
    assert code == 2
    assert "with train and test in it" in err


def test_a_training_part_without_classes_will_do(call, tiny_vit, tmp_path):
    folder = write_set(tmp_path / "flat", train=2, test=1)
    for i, file in enumerate(sorted((folder / "train").rglob("*.png"))):
        file.rename(folder / "train" / f"{i}.png")
    for name in "ABCD":
        (folder / "train" / name).rmdir()
    arguments = ("--backbone", f"local:{tiny_vit}", "--methods", "ot", "--protocols", "inductive,longtail-10")
    assert call("bench", "--data", folder, *arguments, "--out", tmp_path / "r.jsonl")[0] == 0
    assert [row["status"] for row in lines(tmp_path / "r.jsonl")] == ["ok", "skipped"]


def test_leaderboard_and_compare(given, call, tmp_path):
    out, page = tmp_path / "r.jsonl", tmp_path / "page.html"
    assert call(*given, "--out", out)[0] == 0
    assert call("bench", "leaderboard", out, "--html", page)[0] == 0
    assert page.read_text().startswith("<!doctype html>")
    # Several files at once; of equal rows the last counts.
    code, text, _ = call("bench", "summary", out, out)
    assert code == 0
    assert text.startswith("### local:")
    assert "| `gda-em` | " in text
    code, text, _ = call("bench", "compare", "gda-em", "cupl", "--results", out)
    assert code == 0
    assert text.count("### ") == 5
    code, text, _ = call("bench", "compare", out, out)
    assert code == 0
    assert "+0.0 to +0.0" in text
    code, _, err = call("bench", "compare", "gda-em", "cupl")
    assert code == 2
    assert "add --results FILE" in err
