"""``benchmarks/signals.py`` on finished runs, training ones too."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finelens.storage.files import write_json
from tests.toy import load_script


@pytest.fixture(scope="module")
def signals():
    return load_script(Path(__file__).parents[2] / "benchmarks/signals.py")


def evaluated(run, target, low, high):
    shutil.copytree(run, target)
    write_json(target / "evaluation.json", {"accuracy": 0.6, "zero_shot_accuracy": 0.5, "difference_interval": [low, high]})


def call(signals, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["signals.py", *map(str, arguments)])
    signals.main()


def test_runs_join_the_table(signals, plain_run, trained_run, tmp_path, monkeypatch, capsys):
    evaluated(trained_run, tmp_path / "runs/a/microclip", 0.01, 0.2)
    evaluated(plain_run, tmp_path / "runs/b", -0.3, -0.1)
    shutil.copytree(plain_run, tmp_path / "runs/c")
    out = tmp_path / "signals.jsonl"
    call(signals, monkeypatch, "--runs", tmp_path / "runs", "--out", out)
    assert "runs/c has no evaluation.json" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["method"], row["start"], row["truth"]) for row in rows] == [
        ("microclip", "run a/microclip", "better"),
        ("stata", "run b", "worse"),
    ]
    for row, run in zip(rows, (trained_run, plain_run), strict=True):
        stored = json.loads((run / "signals.json").read_text())["signals"]
        assert row["signals"] == {name: round(value, 4) if isinstance(value, float) else value for name, value in stored.items()}
        assert row["set"] == "photos"
        with signals.RunFolder.open(run) as folder:
            assert row["verdict"] == replace(signals.read_run(folder), evaluation=None).verdict.level
    call(signals, monkeypatch, "--runs", tmp_path / "runs", "--out", out)
    assert len(out.read_text().splitlines()) == 2, "finished lines are skipped"
    call(signals, monkeypatch, "--table", out)
    table = capsys.readouterr().out
    counts = {line.split("|")[1].strip(): [int(cell) for cell in line.split("|")[2:5]] for line in table.split("\n\n")[0].splitlines()[2:]}
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [1, 0, 1]
    assert counts[rows[0]["verdict"]][0] == 1
    assert "precision" not in table


def test_runs_stand_beside_rows_on_features(signals, plain_run, tmp_path, monkeypatch, capsys):
    stored = (Path(__file__).parents[2] / "benchmarks/results/signals.jsonl").read_text()
    out = tmp_path / "signals.jsonl"
    out.write_text(stored)
    call(signals, monkeypatch, "--table", out)
    before = capsys.readouterr().out
    evaluated(plain_run, tmp_path / "runs/one", 0.1, 0.2)
    call(signals, monkeypatch, "--runs", tmp_path / "runs", "--out", out)
    call(signals, monkeypatch, "--table", out)
    after = capsys.readouterr().out
    numbers = [sum(int(cell) for line in text.split("\n\n")[0].splitlines()[2:] for cell in line.split("|")[2:5]) for text in (before, after)]
    assert numbers[1] == numbers[0] + 1 == len(stored.splitlines()) + 1
    assert before.partition("| estimate |")[2] == after.partition("| estimate |")[2]


def test_what_to_read_must_be_said(signals, tmp_path, monkeypatch):
    for arguments in ([], ["--out", "x"], ["features", "--runs", "runs", "--out", "x"]):
        with pytest.raises(SystemExit):
            call(signals, monkeypatch, *arguments)
