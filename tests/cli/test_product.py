"""The command as a product: folders of its own, plans, settings, completion, the cache, methods to come, and one grammar for all verbs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import click
import numpy as np
import pytest

from finelens.cli import cli
from finelens.commands.completion import complete_method
from finelens.commands.new_method import new_method, write_package
from finelens.core.voice import INTERRUPTED, JUDGED, MISTAKE
from finelens.methods.registry import METHODS
from finelens.runs.config import RunConfig
from finelens.runs.place import dated_folder
from finelens.runs.repeat import read_options, to_toml
from finelens.storage import cache_place
from tests.solvers.data import cloud
from tests.toy import CLASSES, digest, write_classes

DOCS = Path(__file__).parents[2] / "docs" / "command.md"


@pytest.fixture
def on_features(tmp_path):
    """Arguments of ``adapt`` on features, but for ``--out``: a run in a moment."""
    features, prototypes, _ = cloud([20, 15, 25, 0], 12)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "x.npy", features)
    np.save(tmp_path / "in" / "w.npy", prototypes)
    write_classes(tmp_path / "in" / "names.txt", CLASSES)
    folder = tmp_path / "in"
    return (folder / "x.npy", "--prototypes", folder / "w.npy", "--classes", folder / "names.txt")


def results(text: str) -> list[dict]:
    return [event for event in map(json.loads, text.splitlines()) if event["event"] == "result"]


def test_a_run_without_a_folder_gets_one_with_the_date_beside_the_photographs(run, on_features):
    first = run("adapt", *on_features, "--method", "stata", "--json")
    (told,) = results(first.out)
    folder = Path(told["run"])
    assert folder.parent == on_features[0].parent
    assert folder.name.startswith("x-run-20")
    assert (told["schema"], told["rows"], told["report"]) == (1, 60, str(folder / "report.html"))
    assert told["verdict"] == json.loads((folder / "verdict.json").read_text())["verdict"]
    second = run("zero-shot", *on_features)
    assert f"the run goes to {folder}-2" in second.err
    assert (folder.with_name(folder.name + "-2") / "predictions.csv").is_file()
    assert "say which" in run("adapt", *on_features, "--overwrite").err


def test_another_program_is_told_how_many_photographs_there_were(run, on_features, tmp_path):
    assert run("adapt", *on_features, "--method", "stata", "--out", tmp_path / "run").code == 0
    told = run("predict", tmp_path / "run", on_features[0], "--csv", tmp_path / "new.csv", "--json")
    (counted,) = [event for event in map(json.loads, told.out.splitlines()) if event["event"] == "files"]
    assert (counted["files"], counted["counts"], counted["earlier"]) == (60, {"ok": 60}, 0)
    assert counted["text"] == "60 files: 60 ok"


def test_the_names_of_dated_folders(tmp_path, monkeypatch):
    day = date(2026, 11, 29)
    (tmp_path / "birds").mkdir()
    assert dated_folder(tmp_path / "birds", day) == tmp_path / "birds-run-2026-11-29"
    (tmp_path / "birds-run-2026-11-29").mkdir()
    (tmp_path / "birds-run-2026-11-29-2").symlink_to("nowhere")
    assert dated_folder(tmp_path / "birds", day) == tmp_path / "birds-run-2026-11-29-3"
    monkeypatch.chdir(tmp_path / "birds")
    assert dated_folder(Path(), day) == tmp_path / "birds-run-2026-11-29-3"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert dated_folder(tmp_path / "cats", day) == Path("cats-run-2026-11-29")
    assert dated_folder(Path("/"), day) == Path("run-2026-11-29")


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(run, given, tmp_path):
    before = set(tmp_path.rglob("*"))
    told = run("adapt", *given, "--out", tmp_path / "run", "--method", "microclip", "--set", "method.crops=2", "--dry-run", "--json")
    (plan,) = results(told.out)
    assert (plan["files"], plan["classes"], plan["method"], plan["out"]) == (26, 4, "microclip", str(tmp_path / "run"))
    assert plan["encoding"] > 0
    assert plan["training"] > 0
    assert plan["seconds"] == plan["encoding"] + plan["training"]
    said = run("zero-shot", *given, "--out", tmp_path / "run", "--dry-run").out
    assert "26 files" in said
    assert "take      " in said
    assert set(tmp_path.rglob("*")) == before
    refused = run("adapt", *given, "--out", given[0] / "run", "--dry-run")
    assert (refused.code, refused.out) == (MISTAKE, "")


def test_a_dry_run_tells_of_hints_that_would_be_left_out(run, given, tmp_path):
    name = f"{CLASSES[0]}/0.png"
    (tmp_path / "hints.csv").write_text(f"path,label\n{name},{CLASSES[0]}\nnowhere.png,{CLASSES[1]}\n", encoding="utf-8")
    asked = ("adapt", *given, "--hints", tmp_path / "hints.csv", "--out", tmp_path / "run")
    planned, done = run(*asked, "--dry-run"), run(*asked)
    assert planned.code == 0, planned
    (said,) = [line for line in planned.err.splitlines() if line.startswith("warning: 1 hint is left out")]
    assert "nowhere.png" in said
    assert said in done.err


def test_a_dry_run_counts_on_what_was_encoded_before(run, given, tmp_path, monkeypatch):
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "cache"))
    asked = ("adapt", *given, "--out", tmp_path / "run")
    (new,) = results(run(*asked, "--dry-run", "--json").out)
    assert run(*asked).code == 0
    (known,) = results(run(*asked, "--overwrite", "--dry-run", "--json").out)
    assert "encoded before" not in new["note"]
    assert ", 7 of which were encoded before" in known["note"]


def test_a_dry_run_where_the_probed_files_cannot_be_read(run, given, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(16):
        (tmp_path / "photos" / f"{number:02}.jpg").write_bytes(b"no image")
    asked = ("adapt", tmp_path / "photos", *given[1:], "--out", tmp_path / "run", "--dry-run", "--json")
    (plan,) = results(run(*asked).out)
    assert (plan["files"], plan["encoding"] > 0) == (16, True)
    for file in sorted((tmp_path / "photos").iterdir())[2:]:
        file.unlink()
    refused = run(*asked)
    assert refused.code == MISTAKE
    assert "none of the 2 files is an image" in refused.err


def test_a_dry_run_fetches_no_weights(run, given, tmp_path):
    said = run("adapt", *given[:3], "--backbone", "hf-hub:nobody/nothing", "--out", tmp_path / "run", "--dry-run")
    assert said.code == 0
    assert "take      not known; weights are not fetched for this" in said.out


def test_the_settings_of_a_run_repeat_it(run, on_features, tmp_path):
    extra = ("--set", "method.neighbours=5", "--seed", 3, "--no-calibration", "--logit-scale", 50)
    assert run("adapt", *on_features, "--method", "stata", *extra, "--out", tmp_path / "run").code == 0
    told = run("config", tmp_path / "run")
    (tmp_path / "run.toml").write_text(told.out)
    assert run("adapt", "--config", tmp_path / "run.toml", "--out", tmp_path / "again").code == 0
    for name in ("config.json", "predictions.csv"):
        assert digest(tmp_path / "again" / name) == digest(tmp_path / "run" / name)
    # What the command line says goes before the file, option by option.
    other = run("adapt", "--config", tmp_path / "run.toml", "--seed", 4, "--set", "method.anchor=2", "--out", tmp_path / "other")
    assert other.code == 0
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (config["seed"], config["method_options"]["neighbours"], config["method_options"]["anchor"]) == (4, 5, 2.0)
    assert "is about finelens adapt" in run("zero-shot", "--config", tmp_path / "run.toml").err


AWKWARD = 'a "b" \\ c\td\x7f é\U0001f426'


def test_texts_and_nothings_survive_the_settings(tmp_path):
    config = RunConfig("adapt", AWKWARD, method="microclip", method_options=None)
    (tmp_path / "a.toml").write_text(to_toml(config), encoding="utf-8")
    values, sections = read_options(
        tmp_path / "a.toml", "adapt", {"photos", "backbone", "method", "seed", "device", "calibration", "strict", "csv-bom", "rank-floor"}
    )
    assert values["photos"] == AWKWARD
    assert sections == {}
    (tmp_path / "b.toml").write_text('set = ["views.x=null", "training.epochs=3"]')
    assert read_options(tmp_path / "b.toml", "adapt", ()) == ({}, {"views": {"x": None}, "training": {"epochs": 3}})


WRONG = {
    "clases = 'x'": "unknown option 'clases'; did you mean classes?",
    "photos = ": "is no TOML",
    "seed = 'much'": "--seed",
    "set = 3": "set must be tables",
    "[set.trainig]\nepochs = 3": "unknown section set.trainig",
    "[method]\nneighbours = 3": "method is a table",
    "config = 'x'": "unknown option 'config'",
}


@pytest.mark.parametrize("text", WRONG)
def test_settings_that_cannot_be_used(run, on_features, tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    result = run("adapt", *on_features, "--config", tmp_path / "a.toml")
    assert (result.code, result.out, result.err.count("\n")) == (MISTAKE, "", 1)
    assert WRONG[text] in result.err


def test_the_tab_key(run):
    for shell in ("bash", "zsh", "fish"):
        assert "_FINELENS_COMPLETE" in run("completion", shell).out
    found = complete_method(None, None, "consensus")
    assert [item.value for item in found] == [method.name for method in METHODS if method.name.startswith("consensus")]
    asked = {"COMP_WORDS": "finelens adapt --meth", "COMP_CWORD": "2", "_FINELENS_COMPLETE": "bash_complete", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", "from finelens.cli import main; main()"], env=asked, capture_output=True, text=True, check=False)
    assert "--method" in done.stdout


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache with two shards, a text and what is not ours."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache_place.ENVIRONMENT_VARIABLE, str(folder))
    for name in ("features/k/a.safetensors", "features/k/b.safetensors", "tensors/t.safetensors", "features/k/.finelens-new.tmp", "mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def test_the_cache_is_shown_and_emptied(run, own_cache):
    import os

    (shown,) = results(run("cache", "--json").out)
    assert (shown["bytes"], shown["files"]) == ({"features": 2000, "tensors": 1000}, {"features": 2, "tensors": 1})
    os.utime(own_cache / "features/k/a.safetensors", (0, 0))
    with (own_cache / "features/k/a.safetensors").open("rb") as reader:
        assert run("cache", "clear", "--older-than", "30").out.startswith("removed 1 files, 1 kB")
        # Whoever has it open reads on.
        assert len(reader.read()) == 1000
    (told,) = results(run("cache", "clear", "--json").out)
    assert (told["removed"], told["bytes"], told["kept"]) == (2, 2000, 0)
    # A file that is being written, and what is not ours, stay.
    assert sorted(path.name for path in own_cache.rglob("*") if path.is_file()) == [".finelens-new.tmp", "mine.txt"]
    assert run("cache", "clear", "--older-than", "nan").code == MISTAKE


def test_the_doctor(run, world, tmp_path, own_cache):
    (found,) = results(run("doctor", "--backbone", f"local:{world / 'backbone'}", "--json").out)
    assert found["backbone"]["works"]
    assert found["backbone"]["images_per_second"] > 0
    assert (found["problems"], found["cache"]["bytes"], found["cache"]["folder"]) == ([], 3000, str(own_cache))
    ill = run("doctor", "--backbone", f"local:{tmp_path}")
    assert ill.code == MISTAKE
    assert f"problem    backbone local:{tmp_path}: " in ill.out
    assert ill.err.count("\n") == 1


def verbs(group: click.Group, before: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[before + name] = command
        if isinstance(command, click.Group):
            found |= verbs(command, f"{before}{name} ")
    return found


def test_every_verb_speaks_to_people_and_programs():
    for name, command in verbs(cli).items():
        opts = {opt for parameter in command.params for opt in parameter.opts}
        assert {"--quiet", "--json"} <= opts, name


def test_the_page_names_every_verb_and_exit_code():
    page = DOCS.read_text(encoding="utf-8")
    for name in verbs(cli):
        assert f"`{name}`" in page, name
    for code in (0, MISTAKE, JUDGED, INTERRUPTED):
        assert f"| {code} |" in page


def test_what_a_verb_tells_another_program(run, on_features, tmp_path):
    assert run("adapt", *on_features, "--method", "stata", "--out", tmp_path / "run", "--quiet")[1:] == ("", "")
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"row-{i:06d},{CLASSES[0]}\n" for i in range(20)))
    asked = ("evaluate", tmp_path / "run", on_features[0], "--labels", tmp_path / "labels.csv")
    (told,) = results(run(*asked, "--json").out)
    assert told["measures"]["n"] == 20
    assert run(*asked, "--json", tmp_path / "e.json").out.split("(")[1].startswith("accuracy")
    assert json.loads((tmp_path / "e.json").read_text()) == told["measures"]
    (known,) = results(run("methods", "--json").out)
    assert [method["name"] for method in known["methods"]][:2] == ["consensus", "auto"]
    (finished,) = [json.loads(line) for line in run("resume", tmp_path / "run", "--json").out.splitlines()][1:]
    assert finished["event"] == "end"


def test_a_method_near_a_known_one(run, on_features):
    assert run("adapt", *on_features, "--method", "statta").err == "finelens: unknown method 'statta'; did you mean stata?\n"


def test_names_of_new_methods(run, tmp_path):
    for name in ("Stata", "a--b", "lambda", "2d", "a/b"):
        assert "lower case with hyphens" in run("new-method", name, "--out", tmp_path / "new").err
    assert "there is a method stata already" in run("new-method", "stata").err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    assert "choose another --out" in run("new-method", "own", "--out", tmp_path / "mine").err
    written = write_package("own-idea", tmp_path / "new")
    assert [str(path.relative_to(tmp_path / "new")) for path in written] == [
        "pyproject.toml",
        "README.md",
        "src/finelens_own_idea/__init__.py",
        "src/finelens_own_idea/solver.py",
        "tests/test_own_idea.py",
    ]
    assert not any("@" in path.read_text() for path in written if path.suffix != ".py")
    assert new_method.name == "new-method"
