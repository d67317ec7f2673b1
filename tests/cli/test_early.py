"""What is wrong with the words of a command is said before torch is imported: that alone takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from dataclasses import fields

import pytest

from finelens.methods.method import Method
from finelens.methods.option_types import option_types
from finelens.methods.registry import METHODS

CODE = """
import io, json, sys
from contextlib import redirect_stderr
from finelens.cli import main
said = []
for words in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as err:
        try:
            main(words)
        except SystemExit as stop:
            assert stop.code == 2, words
    said.append(err.getvalue())
print(json.dumps([said, [name for name in ("torch", "sklearn", "scipy", "open_clip", "PIL") if name in sys.modules]]))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    (tmp_path / "twice.txt").write_text("cat\nCat\n")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": "finelens-run"}')
    return tmp_path


def test_mistakes_are_told_without_torch(folder):
    run = ["--classes", "c.txt", "--out", "out"]
    cases = {
        ("adapt", "nowhere", *run): "nowhere does not exist",
        ("adapt", "c.txt", *run): "is a file; give the folder",
        ("adapt", "nowhere.npy", *run): "does not exist",
        ("adapt", "photos", "--classes", "no.txt", "--out", "out"): "no.txt' does not exist",
        ("adapt", "phtos", "--classes", "nmes.txt", "--out", "out"): "phtos does not exist; did you mean photos?",
        ("adapt", "photos", "--classes", "twice.txt", "--out", "out"): "'cat' (line 1), 'Cat' (line 2)",
        ("adapt", "photos", *run, "--descriptions", "bad.json"): "bad.json",
        ("adapt", "photos", *run, "--hints", "no.csv"): "cannot read no.csv",
        ("adapt", "photos", *run, "--prototypes", "no.npy"): "cannot read no.npy",
        ("adapt", "photos", "--classes", "c.txt", "--out", "photos/out"): "lies inside the photographs",
        ("adapt", "photos", "--classes", "c.txt", "--out", "mine.csv"): "is a file, and a run needs a folder",
        ("adapt", "photos", *run, "--method", "micro-clip"): "did you mean microclip?",
        ("adapt", "photos", *run, "--method", "auto", "--minutes", "0"): "--minutes must be above 0",
        ("adapt", "photos", *run, "--method", "stata", "--set", "method.anchr=2"): "did you mean method.anchor?",
        ("adapt", "photos", *run, "--method", "stata", "--set", "method.anchor=much"): "method.anchor: expected a number, got 'much'",
        ("adapt", "photos", *run, "--method", "stata", "--set", "training.epochs=3"): "method stata does not train",
        ("adapt", "photos", *run, "--method", "microclip", "--set", "training.lr=nan"): "training.lr",
        ("adapt", "photos", *run, "--set", "views.crop_lo=0.5"): "did you mean views.crop_low?",
        ("adapt", "photos", *run, "--set", "text.templates=no.txt"): "no.txt",
        ("adapt", "photos", *run, "--device", "gpu"): "unknown device 'gpu'",
        ("adapt", "photos", *run, "--backbone", "clip"): "unknown backbone 'clip'",
        ("adapt", "photos", *run, "--quiet", "--json"): "give one of them",
        ("adapt", "photos", *run, "--quiet", "--verbose"): "give one of them",
        ("adapt", "photos", *run, "--json", "--verbose"): "give one of them",
        ("zero-shot", "photos", *run, "--row-names", "c.txt"): "--row-names has an effect on feature files only",
        ("features", "nowhere", "--out", "f.safetensors"): "nowhere does not exist",
        ("features", "photos", "--out", "f.safetensors", "--descriptions", "bad.json"): "give --classes FILE as well",
        ("predict", "photos", "photos", "--csv", "p.csv"): "photos is not the folder of a finelens run",
        ("predict", "run", "photos", "--csv", "p.csv"): "the run is not finished",
        ("predict", "run", "photos", "--csv", "mine.csv"): "was not written by finelens",
        ("predict", "run", "photos", "--csv", "p.csv", "--shard", "3/2"): "expected I/K",
        ("predict", "run", "photos", "--csv", "p.csv", "--coverage", "0.9"): "with --calibrate only",
        ("join", "p-00001-of-00002.csv", "--csv", "p.csv"): "part 2/2 is not among the files",
        ("join", "p.csv", "--csv", "q.csv"): "expected the name of a part",
    }
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(list(cases))], capture_output=True, text=True, check=True, cwd=folder)
    said, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    for (words, message), line in zip(cases.items(), said, strict=True):
        assert message in line, words
        assert line.count("\n") == 1


def test_an_error_is_an_event_as_well(run, folder):
    result = run("features", folder / "nowhere", "--out", folder / "f.safetensors", "--json")
    (line,) = result.out.splitlines()
    event = json.loads(line)
    assert (result.code, event["event"]) == (2, "error")
    assert event["text"] in result.err


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_table_of_options_is_that_of_the_methods(method: Method):
    hints = typing.get_type_hints(method.config_class)
    real = {field.name: hints[field.name] for field in fields(method.config_class)}
    assert option_types().get(method.name) == real, "run python scripts/option_types.py"
