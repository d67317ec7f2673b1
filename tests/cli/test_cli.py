"""The verbs, with the defaults that a user gets and a tiny backbone."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from finelens.core.schemas import EVALUATION_KEYS, PREDICTION_COLUMNS, UNLIKE_NOTE, VERDICTS
from finelens.engine.device import choose_precision
from finelens.methods.registry import DEFAULT_METHOD, METHODS
from finelens.storage.predictions import read_predictions
from finelens.storage.tensors import load_tensors
from tests.cli.conftest import FAST
from tests.toy import CLASSES, digest


def table(path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_help_names_every_verb():
    finished = subprocess.run([sys.executable, "-m", "finelens", "--help"], capture_output=True, text=True, check=True)
    for verb in ("adapt", "zero-shot", "resume", "predict", "evaluate", "methods", "demo", "bench"):
        assert f"\n  {verb} " in finished.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["adapt", "--help"], ["bench", "--help"], ["--version"], ["methods"], ["adapt", "photos", "--clases", "x"]]
)
def test_answers_at_once_import_no_tensor_library(arguments):
    code = (
        "import sys; from finelens.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print('heavy:', [name for name in ('torch', 'numpy', 'open_clip', 'sklearn', 'PIL') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "heavy: []"


def test_methods_prints_name_family_and_sentence(run):
    result = run("methods")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    others = [method for method in METHODS if method.name != DEFAULT_METHOD]
    assert [line.split()[0] for line in lines] == [DEFAULT_METHOD, "auto", *(method.name for method in others)]
    assert lines[0].split(maxsplit=2)[2].startswith("Default. ")
    for line, method in zip(lines[2:], others, strict=True):
        assert line.split(maxsplit=2) == [method.name, method.family, method.summary]


def test_adapt_writes_a_run(adapted):
    config = json.loads((adapted / "config.json").read_text())
    assert config["method"] == "microclip"
    assert config["training"] == {
        "epochs": 2,
        "batch_size": 8,
        "lr": 0.001,
        "min_lr": 2e-6,
        "weight_decay": 0.1,
        "scope": "norm",
        "cached_prefix": 0,
        "guard": "on",
        "loss": "ce",
        "mix_weight": 0.05,
        "precision": choose_precision("auto", torch.device("cpu")).name,
        "compile": "auto",
    }
    assert config["method_options"]["crops"] == 2
    assert config["method_options"]["gamma"] == 0.5
    assert config["views"]["store_short_side"] == 448
    assert {path.name for path in (adapted / "model").iterdir()} == {"model.json", "model.safetensors", "zero_shot.safetensors"}
    lines = [json.loads(line) for line in (adapted / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] != "warning"] == ["start", "images", "classes", "epoch", "epoch", "predictions", "end"]
    assert lines[1]["counts"] == {"ok": 24, "corrupt": 1, "unsupported": 1}


def test_the_verdict_is_a_line_a_file_and_an_exit_code(run, adapted, tmp_path):
    verdict = json.loads((adapted / "verdict.json").read_text())
    assert {"format", "schema_version", "finelens_version", "verdict", "measured", "sentence", "reasons", "figures", "evaluation"} == verdict.keys()
    assert verdict["verdict"] in VERDICTS[1:]
    assert {"code", "kind", "text"} == verdict["reasons"][0].keys()
    assert (verdict["figures"]["images"], verdict["figures"]["classes"]) == (24, 4)
    # Whoever does not ask gets the code of before.
    assert run("resume", adapted).code == 0
    copy = shutil.copytree(adapted, tmp_path / "run")
    for level, codes in {"cannot judge": (3, 0, 0), "unclear": (3, 3, 0), "do not use": (3, 3, 3), "improved": (0, 0, 0)}.items():
        (copy / "verdict.json").write_text(json.dumps({**verdict, "verdict": level}))
        found = tuple(run("resume", copy, "--fail-on", name).code for name in ("cannot-judge", "unclear", "do-not-use"))
        assert found == codes, level
    (copy / "verdict.json").unlink()
    lost = run("resume", copy, "--fail-on", "unclear")
    assert lost.code == 2
    assert "finelens report" in lost.err
    assert run("report", copy).err.splitlines()[-1] == f"verdict on {copy}: {verdict['verdict']}. {verdict['sentence']}"
    assert json.loads((copy / "verdict.json").read_text()) == verdict


def test_adapt_without_a_method_takes_the_best_answer_known(run, given, tmp_path):
    result = run("adapt", *given, "--out", tmp_path / "run")
    assert (result.code, result.out) == (0, "")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == DEFAULT_METHOD == "consensus"
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    # What the method found inside is in the log and the report; the terminal has it on request.
    inside = [line["message"] for line in lines if line["event"] == "decision"]
    assert any(message.startswith("class sizes (class masses): ") for message in inside)
    assert any(message.endswith("went back to the class that the text names") for message in inside)
    loud = run("adapt", *given, "--out", tmp_path / "loud", "--verbose")
    for jargon in (*inside, "temperature", "precision: ", "time by stage: "):
        assert jargon not in result.err
        assert jargon in loud.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "class sizes (class masses): " in page
    assert not {"guard", "epoch"} & {line["event"] for line in lines}
    # One photograph, and one class, will do.
    photo = next((given[0]).glob("*/0.png"))
    (tmp_path / "one").mkdir()
    shutil.copy(photo, tmp_path / "one")
    (tmp_path / "names.txt").write_text(photo.parent.name + "\n")
    tiny = run("adapt", tmp_path / "one", "--classes", tmp_path / "names.txt", *given[3:], "--out", tmp_path / "tiny")
    assert tiny.code == 0, tiny.err
    assert [row["class"] for row in table(tmp_path / "tiny" / "predictions.csv")] == [photo.parent.name]


def test_one_row_for_each_file_whatever_became_of_it(adapted):
    rows = table(adapted / "predictions.csv")
    assert tuple(rows[0]) == PREDICTION_COLUMNS
    status = {row["path"]: row["status"] for row in rows}
    assert status == {f"{name}/{i}.png": "ok" for name in CLASSES for i in range(6)} | {"broken.jpg": "corrupt", "notes.txt": "unsupported"}
    assert [row["path"] for row in rows] == sorted(status)
    for row in rows:
        if row["status"] == "ok":
            top = json.loads(row["top5"])
            assert row["class"] == top[0][0]
            assert {row["class"], row["zero_shot_class"]} <= set(CLASSES)
            assert sum(p for _, p in top) == pytest.approx(1, abs=1e-5)
            assert float(row["margin"]) == pytest.approx(top[0][1] - top[1][1], abs=1e-5)
        else:
            assert (row["class"], row["probability"], row["top5"]) == ("", "", "")
            assert row["reason"]


def test_adapt_says_what_it_does_on_standard_error_only(run, given, tmp_path):
    result = run("adapt", *given, "--out", tmp_path / "run", *FAST)
    assert (result.code, result.out) == (0, "")
    for part in ("no descriptions of the 4 classes given", "26 files, 24 ok", "predicted time: about", "got another class", "wrote"):
        assert part in result.err
    assert "Warning" not in result.err


def test_words_that_may_be_misspelt_are_said(run, given, tmp_path):
    (tmp_path / "names.txt").write_text("hammer\npalace\nscissors\nsunflwer\n")
    said = run("zero-shot", given[0], "--classes", tmp_path / "names.txt", "--out", tmp_path / "run").err
    assert "may be misspelt, and the model reads them as they stand: 'sunflwer' ('sunflower'?)" in said


def test_the_demonstration_leaves_other_runs_alone(run, adapted):
    before = digest(adapted / "predictions.csv")
    result = run("demo", "--out", adapted)
    assert (result.code, digest(adapted / "predictions.csv")) == (2, before)
    assert "holds a run that is not this demonstration; give another folder with --out" in result.err


def test_adapt_twice_gives_the_same_bits(run, given, adapted, tmp_path):
    assert run("adapt", *given, "--out", tmp_path / "run", *FAST).code == 0
    for file in ("predictions.csv", "model/model.safetensors"):
        assert digest(tmp_path / "run" / file) == digest(adapted / file)


def test_zero_shot(run, given, adapted, tmp_path):
    result = run("zero-shot", *given, "--out", tmp_path / "run")
    next_step = f"what to do next, with the commands: open {tmp_path / 'run' / 'report.html'} in a browser"
    assert result.err.splitlines()[-1] == next_step
    assert result.code == 0
    assert "0 of 24 images got another class" in result.err
    rows = {row["path"]: row for row in table(tmp_path / "run" / "predictions.csv")}
    assert all(row["class"] == row["zero_shot_class"] for row in rows.values())
    # What a training run calls zero-shot is this.
    assert {path: row["class"] for path, row in rows.items()} == {row["path"]: row["zero_shot_class"] for row in table(adapted / "predictions.csv")}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["verb"], config["method"]) == ("zero-shot", "zero-shot")


def test_zero_shot_with_descriptions(run, given, tmp_path):
    texts = {name: [f"a drawing of {name} number {i}." for i in range(3)] for name in CLASSES}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    result = run("zero-shot", *given, "--method", "cupl", "--descriptions", tmp_path / "texts.json", "--out", tmp_path / "run")
    assert result.code == 0
    assert "no descriptions" not in result.err


def test_class_without_a_description_is_reported_and_gets_templates(run, given, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps({CLASSES[0]: ["red and striped."], "Blue_Disc": ["round."], "unicorn": ["white."]}))
    result = run("zero-shot", *given, "--method", "cupl", "--descriptions", tmp_path / "texts.json", "--out", tmp_path / "run")
    assert result.code == 0
    assert CLASSES[1] in result.err
    assert CLASSES[3] in result.err
    assert "unicorn" in result.err
    assert CLASSES[2] not in result.err
    logged = next(json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines() if '"classes"' in line)
    assert logged["descriptions"]["missing"] == [CLASSES[1], CLASSES[3]]


def test_predict_new_photographs(run, adapted, world, tmp_path):
    result = run("predict", adapted, world / "new", "--csv", tmp_path / "out.csv")
    assert (result.code, result.out) == (0, "")
    rows = table(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == sorted(f"{name}.png" for name in CLASSES)
    assert all(row["status"] == "ok" and row["zero_shot_class"] for row in rows)


def test_predict_on_the_photographs_of_the_run_repeats_its_table(run, adapted, world, tmp_path):
    assert run("predict", adapted, world / "photos", "--csv", tmp_path / "out.csv").code == 0
    before, after = table(adapted / "predictions.csv"), table(tmp_path / "out.csv")
    columns = ("path", "class", "zero_shot_class", "status", "reason")
    assert [[row[c] for c in columns] for row in before] == [[row[c] for c in columns] for row in after]
    for a, b in zip(before, after, strict=True):
        assert float(a["probability"] or 0) == pytest.approx(float(b["probability"] or 0), abs=0.02)


def test_evaluate_by_folders(run, adapted, photos, tmp_path):
    result = run("evaluate", adapted, photos, "--labels", "folders", "--json", tmp_path / "scores.json")
    assert (result.code, result.err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [line.split()[0] for line in result.out.splitlines()] == [f"{scores['accuracy']:.1%}", "all", "without"]
    assert set(EVALUATION_KEYS) <= scores.keys()
    right = [row["class"] == row["path"].split("/")[0] for row in table(adapted / "predictions.csv") if row["status"] == "ok"]
    first = [row["zero_shot_class"] == row["path"].split("/")[0] for row in table(adapted / "predictions.csv") if row["status"] == "ok"]
    assert scores["n"] == 24
    assert scores["accuracy"] == pytest.approx(sum(right) / 24)
    assert scores["class_mean_accuracy"] == pytest.approx(sum(right) / 24)
    assert scores["zero_shot_accuracy"] == pytest.approx(sum(first) / 24)
    assert f"{scores['accuracy']:.1%} of {scores['n']} images are right (accuracy;" in result.out


def test_evaluate_by_table_counts_what_could_not_be_read(run, adapted, world, tmp_path):
    predicted = {row["path"]: row["class"] for row in table(adapted / "predictions.csv")}
    wrong = {name: next(other for other in CLASSES if other != name) for name in CLASSES}
    rows = [(path, label if i % 4 else wrong[label]) for i, (path, label) in enumerate(sorted(predicted.items())) if label][:8]
    rows.append(("broken.jpg", CLASSES[0]))
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(f"{path},{label}" for path, label in rows))
    result = run("evaluate", adapted, world / "photos", "--labels", tmp_path / "labels.csv", "--json", tmp_path / "scores.json")
    assert result.code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    hits = sum(predicted[path] == label for path, label in rows[:8])
    assert (scores["n"], scores["n_failed"], scores["accuracy"]) == (8, 1, hits / 8)
    assert 0 < hits < 8
    assert "1 could not be read" in result.out
    # The run's own photographs, wherever they lie.
    assert scores["adapted_to"] == 8
    assert "all of these are photographs that the run was adapted to, without labels" in result.out
    (tmp_path / "new").mkdir()
    name, label = rows[0]
    shutil.copy(world / "photos" / name, tmp_path / "new" / "a.png")
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "new" / "b.png")
    (tmp_path / "labels.csv").write_text(f"path,label\na.png,{label}\nb.png,{label}\n")
    assert (
        "1 of these are photographs that the run was adapted to"
        in run("evaluate", adapted, tmp_path / "new", "--labels", tmp_path / "labels.csv").out
    )


def test_resume_of_a_finished_run_says_so(run, adapted):
    before = {path: digest(path) for path in adapted.rglob("*") if path.is_file()}
    result = run("resume", adapted)
    assert (result.code, result.out) == (0, "")
    assert "is finished; nothing to resume" in result.err
    assert {path: digest(path) for path in adapted.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_an_earlier_run(run, given, tmp_path):
    out = tmp_path / "run"
    assert run("adapt", *given, "--out", out, *FAST, "--seed", 1).code == 0
    assert run("zero-shot", *given, "--out", out, "--overwrite").code == 0
    assert json.loads((out / "config.json").read_text())["verb"] == "zero-shot"
    assert not (out / "checkpoint").exists()


def test_every_prediction_says_how_likely_it_is_none_of_the_classes(run, adapted, world, tmp_path):
    doubts = [float(row["none_of_these"]) for row in table(adapted / "predictions.csv") if row["status"] == "ok"]
    assert len(doubts) == 24
    said = sum(doubt > 0.5 for doubt in doubts)
    assert json.loads((adapted / "verdict.json").read_text())["figures"]["none_of_these"] == pytest.approx(said / 24, abs=1e-4)
    assert ("probably none of your classes" in (adapted / "report.html").read_text().lower()) == (said > 0)
    # New photographs are held against the level that the run found.
    assert load_tensors(adapted / "model" / "zero_shot.safetensors")["none.level"][1] > 0
    result = run("predict", adapted, world / "new", "--csv", tmp_path / "new.csv")
    assert result.code == 0
    new = [float(row["none_of_these"]) for row in table(tmp_path / "new.csv")]
    assert all(0 < doubt < 1 for doubt in new)
    if strange := sum(doubt > 0.5 for doubt in new):
        assert f"{strange} of 4 photograph" in result.err
    # It costs the unadapted model's look.
    assert run("predict", adapted, world / "new", "--csv", tmp_path / "fast.csv", "--no-zero-shot").code == 0
    assert {row["none_of_these"] for row in table(tmp_path / "fast.csv")} == {""}


def test_evaluate_unknown_judges_that_column(run, adapted, world, tmp_path):
    labels = tmp_path / "labels.csv"
    known = [f"{name}/{i}.png,{name}" for name in CLASSES[:2] for i in range(3)]
    other = [f"{CLASSES[2]}/0.png,a thing that is no class", f"{CLASSES[2]}/1.png,", f"{CLASSES[3]}/1.png,none of these"]
    labels.write_text("path,label\n" + "\n".join([*known, *other]) + "\n")
    refused = run("evaluate", adapted, world / "photos", "--labels", labels)
    assert refused.code == 2
    assert "unknown label" in refused.err
    result = run("evaluate", adapted, world / "photos", "--labels", labels, "--unknown", "--json", tmp_path / "found.json")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["n"], found["unknown"]["n"], found["unknown"]["known"]) == (6, 3, 6)
    assert "none of the classes: said of" in result.out
    labels.write_text("path,label\n" + "\n".join(known) + "\n")
    assert "every label names a class" in run("evaluate", adapted, world / "photos", "--labels", labels, "--unknown").err
    # By folders, those of no class.
    copy = shutil.copytree(world / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns("*.txt", "broken*", ".hidden*"))
    (copy / CLASSES[3]).rename(copy / "something else")
    result = run("evaluate", adapted, copy, "--labels", "folders", "--unknown", "--json", tmp_path / "folders.json")
    found = json.loads((tmp_path / "folders.json").read_text())
    assert (found["n"], found["unknown"]["n"], found["labels_left_out"]) == (18, 6, 0)


def test_evaluate_by_groups_and_report_with_them(run, adapted, world, tmp_path):
    groups = tmp_path / "groups.csv"
    lines = [f"{name}/{i}.png,{'yes' if i % 2 else 'no'},{'north' if i < 3 else 'south'}" for name in CLASSES for i in range(6)]
    groups.write_text("path,marker,site\n" + "\n".join(lines) + "\nelsewhere.png,yes,north\n")
    photos = shutil.copytree(world / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns("*.txt", "broken*", ".hidden*"))
    result = run("evaluate", adapted, photos, "--labels", "folders", "--groups", groups, "--json", tmp_path / "found.json")
    assert result.code == 0, result.err
    assert "1 line of" in result.err.replace("are about", "of")
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["groups"]) == ["marker", "site"]
    marker = found["groups"]["marker"]
    assert sum(group["n"] for group in marker["groups"]) == 24
    weighted = sum(group["n"] * group["accuracy"] for group in marker["groups"]) / 24
    assert weighted == pytest.approx(found["accuracy"])
    assert "marker: worst and best group" in result.out
    copy = shutil.copytree(adapted, tmp_path / "run")
    assert "--groups needs --labels" in run("report", copy, "--groups", groups).err
    assert run("report", copy, "--labels", "folders", "--test", photos, "--groups", groups).code == 0
    page = (copy / "report.html").read_text()
    assert "<h3>By <bdi>marker</bdi></h3>" in page
    assert "groups drawn at random have one as large" in page


def test_report_says_how_well_none_of_the_classes_is_told(run, adapted, world, tmp_path):
    copy = Path(shutil.copytree(adapted, tmp_path / "run"))
    rows = read_predictions(copy / "predictions.csv")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{row.path},{'none' if i < 6 else row.path.split('/')[0]}\n" for i, row in enumerate(rows)))
    assert "--unknown needs --labels" in run("report", copy, "--unknown").err
    assert run("report", copy, "--labels", labels, "--unknown").code == 0
    page = (copy / "report.html").read_text()
    assert "of 6 photographs that are none; in no other number here" in page
    assert "of the 18 others" in page
    assert "On 18 labelled images" in page


def test_predict_warns_of_photographs_unlike_those_of_the_fit(run, adapted, world, tmp_path):
    assert "look unlike" not in run("predict", adapted, world / "photos", "--csv", tmp_path / "own.csv").err
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(5):
        Image.new("RGB", (70, 70), (0, 0, 10 * i)).save(flat / f"{i}.png")
    result = run("predict", adapted, flat, "--csv", tmp_path / "flat.csv")
    assert result.code == 0
    assert "5 of 5 photographs look unlike those that the run was adapted to" in result.err
    with (tmp_path / "flat.csv").open(newline="") as file:
        assert {row["reason"] for row in csv.DictReader(file)} == {UNLIKE_NOTE}
