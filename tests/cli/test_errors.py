"""A mistake of the user is exactly one line on standard error and exit code 2; no traceback, and nothing on standard output."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
import threading
import warnings
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from finelens import api, cli
from finelens.core.given import PATH
from finelens.errors import UserError
from finelens.storage.predictions import read_predictions
from tests.cli.conftest import FAST
from tests.toy import CLASSES


@pytest.fixture
def fails(run):
    """Runs the command and returns its one line."""

    def call(*arguments: object) -> str:
        result = run(*arguments)
        assert (result.code, result.out) == (2, ""), result
        lines = result.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("finelens: ")
        assert "Traceback" not in lines[0]
        return lines[0]

    return call


@pytest.fixture
def adapt(fails, world, tmp_path):
    """``adapt`` with one argument replaced."""

    def call(*more: object, photos=None, classes=None, backbone=None, verb="adapt") -> str:
        return fails(
            verb,
            photos or world / "photos",
            *("--classes", classes or world / "classes.txt"),
            *("--backbone", backbone or f"local:{world / 'backbone'}"),
            *("--out", tmp_path / "run"),
            *more,
        )

    return call


def test_wrong_path(adapt, tmp_path):
    assert str(tmp_path / "nowhere") in adapt(photos=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_names_instead_of_a_file_of_them(adapt):
    assert "does not exist; give a text file, one entry a line" in adapt(classes="cat, dog")
    assert "File name too long; give a text file, one entry a line" in adapt(classes="golden retriever, " * 30)


def test_a_name_that_no_file_can_have(adapt, fails):
    long = "p" * 300
    assert "give the --out of an earlier run" in fails("report", long)
    for line in (adapt(photos=long), adapt(backbone=f"local:{long}"), fails("predict", long, ".", "--csv", "a.csv")):
        assert "no file has a name that long; give the path of a file, not what is in it" in line


def test_file_instead_of_folder(adapt, world):
    assert "is a file; give the folder" in adapt(photos=world / "classes.txt")


def test_empty_folder(adapt, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no visible file" in adapt(photos=tmp_path / "empty")


@pytest.mark.parametrize("content", ["", "\n \n", "# only a comment\n"])
def test_empty_class_list(adapt, tmp_path, content):
    (tmp_path / "names.txt").write_text(content)
    line = adapt(classes=tmp_path / "names.txt")
    assert "there are no class names" in line
    assert "names.txt" in line


def test_missing_class_file(adapt, tmp_path):
    assert "does not exist" in adapt(classes=tmp_path / "names.txt")


def test_repeated_class(adapt, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\nCat \n")
    assert "'cat' (line 1), 'Cat' (line 3)" in adapt(classes=tmp_path / "names.txt")


def test_misspelt_option(fails, world):
    assert "--classes" in fails("adapt", world / "photos", "--clases", world / "classes.txt", "--out", "run")


def test_missing_option(fails, world):
    assert "--classes" in fails("adapt", world / "photos", "--out", "run")


def test_misspelt_verb(fails):
    assert "adpat" in fails("adpat")


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("training.epoch=3", "did you mean training.epochs?"),
        ("trainig.epochs=3", "did you mean training.epochs?"),
        ("method.gama=0.5", "did you mean method.gamma?"),
        ("views.crop_lo=0.5", "did you mean views.crop_low?"),
        ("training.epochs", "expected section.key=value"),
        ("epochs=3", "expected section.key=value"),
        ("training.epochs=0", "training.epochs must be at least 1"),
        ("training.epochs=many", "training.epochs: expected an integer, got 'many'"),
        ("training.lr=nan", "training.lr"),
        ("training.precision=float16", "training.precision: expected one of"),
        ("method.gamma=2", "method.gamma must lie between 0 and 1"),
        ("method.query=salience", "did you mean 'saliency'?"),
        ("text.templates=nowhere.txt", "nowhere.txt"),
    ],
)
def test_misspelt_or_impossible_setting(adapt, assignment, hint):
    assert hint in adapt("--method", "microclip", "--set", assignment)


def test_training_option_of_a_method_that_does_not_train(adapt):
    assert "method zero-shot does not train" in adapt("--set", "training.epochs=3", verb="zero-shot")


def test_misspelt_method(adapt):
    assert "did you mean microclip?" in adapt("--method", "micro-clip")


def test_training_method_with_zero_shot(adapt):
    assert "use finelens adapt --method microclip" in adapt("--method", "microclip", verb="zero-shot")


@pytest.mark.parametrize("backbone", ["clip", "open_clip:", "local:/nowhere", "open_clip:ViT-B-3/openai", "file:x"])
def test_unknown_backbone(adapt, backbone):
    assert backbone.partition(":")[2] in adapt(backbone=backbone)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:7", "mps"])
def test_device_that_is_not_here(adapt, device):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    assert repr(device) in adapt("--device", device)


def test_negative_seed(adapt):
    assert "--seed" in adapt("--seed", "-1")


def test_descriptions_of_other_classes(adapt, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps({"cat": ["furry."], "dog": ["loyal."]}))
    assert "describes none of the 4 classes" in adapt("--descriptions", tmp_path / "texts.json")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"red stripe": "one text"}'])
def test_unusable_descriptions(adapt, tmp_path, content):
    (tmp_path / "texts.json").write_text(content)
    assert "texts.json" in adapt("--descriptions", tmp_path / "texts.json")


def test_out_with_an_earlier_run(fails, given, adapted):
    assert "--overwrite" in fails("adapt", *given, "--out", adapted)


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_out_with_foreign_files(adapt, tmp_path, more):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert "was not written by finelens" in adapt(*more)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_out_inside_the_photographs(fails, given, world):
    assert "lies inside the photographs" in fails("adapt", *given, "--out", world / "photos" / "run")
    assert not (world / "photos" / "run").exists()


def test_scope_that_the_tower_does_not_have(run, given, tmp_path):
    result = run("adapt", *given, "--method", "microclip", "--out", tmp_path / "run", "--set", "training.scope=last-9-norm")
    assert result.code == 2
    assert "unknown tuning scope 'last-9-norm'" in result.err.splitlines()[-1]
    assert "k from 1 to 2" in result.err.splitlines()[-1]


def test_no_image_can_be_read(run, given, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no")
    result = run("adapt", tmp_path / "photos", *given[1:], "--out", tmp_path / "run")
    assert result.code == 2
    *said, line = result.err.splitlines()
    assert line.startswith("finelens: none of the 1 files is an image that can be read (a.jpg: corrupt")
    assert not any(text.startswith("finelens:") for text in said)


def test_no_image_of_predict_can_be_read(run, adapted, tmp_path):
    """Rows say why; another program sees by the code that there is no answer."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no")
    result = run("predict", adapted, tmp_path / "photos", "--csv", tmp_path / "new.csv")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("finelens: none of the 1 files is an image that can be read; the column reason of ")
    assert [row.status for row in read_predictions(tmp_path / "new.csv")] == ["corrupt"]
    result = run("predict", adapted, tmp_path / "photos", "--csv", tmp_path / "tiles.csv", "--tiles", "2")
    assert result.code == 2
    assert "none of the 1 files is an image" in result.err
    # A part ends as the whole does; one without files is no mistake.
    for part, code in (("1/2", 0), ("2/2", 2)):
        assert run("predict", adapted, tmp_path / "photos", "--csv", tmp_path / "new.csv", "--shard", part).code == code
    parts = [tmp_path / f"new-0000{i}-of-00002.csv" for i in (1, 2)]
    result = run("join", *parts, "--csv", tmp_path / "whole.csv")
    assert result.code == 2
    assert "none of the 1 files is an image" in result.err
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()


def test_what_read_nothing_is_given_again_without_more_words(run, adapted, world, tmp_path):
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.jpg"
    photo.write_text("no")
    commands = [
        ["predict", adapted, tmp_path / "photos", "--csv", tmp_path / "new.csv"],
        ["predict", adapted, tmp_path / "photos", "--csv", tmp_path / "part.csv", "--shard", "1/1"],
        ["features", tmp_path / "photos", "--backbone", f"local:{world / 'backbone'}", "--out", tmp_path / "new.features"],
    ]
    for command in commands:
        for _ in range(2):
            result = run(*command)
            assert result.code == 2
            assert "none of the 1 files is an image that can be read" in result.err.splitlines()[-1]
    photo.write_bytes(next((world / "photos").rglob("*.png")).read_bytes())
    assert [run(*command).code for command in commands] == [0, 0, 0]
    for command in commands:
        assert "--overwrite" in run(*command).err.splitlines()[-1]


def test_processes_that_read_nothing_end_as_one_does(run, adapted, tmp_path, monkeypatch):
    """The one that is done last says so: a mistake of another would end those that still work."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no")
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    for first in (1, 0):
        codes = []
        for rank in (first, 1 - first):
            monkeypatch.setenv("RANK", str(rank))
            codes.append(run("predict", adapted, tmp_path / "photos", "--csv", tmp_path / f"{first}.csv").code)
        assert codes == [0, 2]
    monkeypatch.setenv("RANK", "0")
    # The same command again is no replacement.
    assert "exists already" not in run("predict", adapted, tmp_path / "photos", "--csv", tmp_path / "0.csv").err


def test_a_part_without_files_says_why(run, adapted, world, tmp_path):
    result = run("predict", adapted, world / "photos", "--csv", tmp_path / "new.csv", "--shard", "1/2")
    assert result.code == 0
    assert "part 1/2 holds none of the 26 files: a part is of whole groups of 512" in result.err


def test_a_folder_that_cannot_be_made_is_said_before_the_work(fails, given, tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    out = tmp_path / "new" / "run"
    assert fails("adapt", *given, "--out", out) == f"finelens: cannot write {out}: Permission denied; make the folder writable or choose another one"


def test_one_class_alone_is_not_called_right(run, given, tmp_path):
    (tmp_path / "one.txt").write_text("thing\n")
    assert run("zero-shot", given[0], "--classes", tmp_path / "one.txt", *given[3:], "--out", tmp_path / "run").code == 0
    assert "right by its own probabilities" not in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_the_option_of_another_verb_for_the_place_of_answers(fails):
    assert fails("predict", "run", "photos", "--out", "new.csv") == "finelens: No such option '--out'. Did you mean '--csv'?"
    assert fails("adapt", "photos", "--csv", "new.csv") == "finelens: No such option '--csv'. Did you mean '--out'?"


def test_another_program_hears_of_a_mistake_in_the_command_line(run):
    result = run("adapt", "photos", "--metod", "x", "--json")
    assert result.code == 2
    assert json.loads(result.out)["event"] == "error"
    assert "--metod" in json.loads(result.out)["text"]


def test_classes_behind_commas_are_one_name(run, given, tmp_path):
    (tmp_path / "names.txt").write_text("boxer, pug, beagle\n")
    result = run("adapt", given[0], "--classes", tmp_path / "names.txt", *given[3:], "--out", tmp_path / "run", "--dry-run")
    assert "names stand one a line, not behind commas" in result.err


def test_a_list_of_names_is_no_file(given, tmp_path):
    with pytest.raises(UserError, match="expected the path of a file, got a list"):
        api.adapt(given[0], ["pug", "beagle"], tmp_path / "run")


def test_photographs_in_shards_are_not_explained_or_sorted(run, fails, world, given, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as archive:
        for file in sorted((world / "photos").rglob("*.png")):
            archive.add(file, file.relative_to(world / "photos"))
    assert run("zero-shot", tmp_path / "shards", *given[1:], "--out", tmp_path / "run").code == 0
    name = read_predictions(tmp_path / "run" / "predictions.csv")[0].path
    assert "lies in an archive, and explain reads a file; unpack a.tar" in fails("explain", tmp_path / "run", name)
    assert "holds shards, and this form needs the photographs as files" in fails(
        "write", tmp_path / "run", "--to", "folders", "--out", tmp_path / "out"
    )


def test_explain_takes_the_names_of_the_table(run, adapted):
    name = next(row.path for row in read_predictions(adapted / "predictions.csv") if row.status == "ok")
    assert run("explain", adapted, name).code == 0


def test_photographs_that_have_moved(run, fails, adapted, world, tmp_path):
    """Whatever needs them says how to tell where they are now."""
    copy = tmp_path / "run"
    shutil.copytree(adapted, copy)
    document = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**document, "photos": "/nowhere/photos"}))
    settings = run("config", copy)
    assert settings.code == 0
    assert "warning: /nowhere/photos does not exist any more: with --config give PHOTOS on the command line as well" in settings.err
    (tmp_path / "run.toml").write_text(settings.out)
    line = fails("adapt", "--config", tmp_path / "run.toml", "--out", tmp_path / "again")
    assert "/nowhere/photos does not exist, which the file of --config names (photos); if it has moved, give PHOTOS on the command line" in line
    assert run("adapt", world / "photos", "--config", tmp_path / "run.toml", "--out", tmp_path / "again", "--dry-run").code == 0
    (tmp_path / "run.toml").write_text('classes = "/nowhere/names.txt"')
    assert "give --classes PATH on the command line" in fails(
        "adapt", world / "photos", "--config", tmp_path / "run.toml", "--out", tmp_path / "again"
    )
    now = "the run's photographs are not in /nowhere/photos any more; say where they are with --photos"
    assert now in fails("explain", copy, "a.png")
    assert now in fails("report", copy, "--labels", "folders")
    lines = (copy / "events.jsonl").read_text().splitlines()
    (copy / "events.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["event"] != "end"))
    assert "with PHOTOS where they are now and the options that finelens config" in fails("resume", copy)


def test_an_empty_path_is_not_the_working_directory(fails, world):
    """As an unset variable of a shell leaves it."""
    for command in (("report", "run", "--photos", ""), ("adapt", "", "--classes", world / "classes.txt"), ("evaluate", "run", "p", "--labels", "")):
        assert "the value is empty; give one, or leave it out" in fails(*command)
    given = [own for verb in cli.VERBS for own in (verb, *getattr(verb, "commands", {}).values())]
    paths = [option for command in given for option in command.params if isinstance(option.type, click.Path)]
    assert len(paths) > 60
    assert all(option.type is PATH for option in paths)


def test_a_misspelt_backbone_names_the_near_one(fails, given, tmp_path):
    line = fails("adapt", *given[:3], "--backbone", "embeded", "--out", tmp_path / "run")
    assert line.startswith("finelens: unknown backbone 'embeded'; did you mean embedded? The forms are")


def test_labels_of_other_classes_name_the_option_for_them(run, adapted, world, tmp_path):
    first = min((world / "photos").rglob("*.png")).relative_to(world / "photos")
    (tmp_path / "labels.csv").write_text(f"path,label\n{first},unheard of\n")
    result = run("evaluate", adapted, world / "photos", "--labels", tmp_path / "labels.csv")
    assert result.code == 2
    assert "with --unknown such photographs count as of none of the classes" in result.err


def test_a_failed_start_leaves_nothing_in_the_way(adapt, run, given, tmp_path):
    adapt(backbone="local:/nowhere")
    result = run("zero-shot", *given, "--out", tmp_path / "run")
    assert result.code == 0, result.err


def test_predict_without_a_run(fails, world, tmp_path):
    assert "is not the folder of a finelens run" in fails("predict", tmp_path, world / "new", "--csv", tmp_path / "out.csv")
    assert "is not the folder of a finelens run" in fails("resume", tmp_path)
    assert "is not the folder of a finelens run" in fails("evaluate", tmp_path, world / "new", "--labels", "folders")


def test_predict_with_an_unfinished_run(fails, adapted, world, tmp_path):
    shutil.copytree(adapted, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    line = fails("predict", tmp_path / "run", world / "new", "--csv", tmp_path / "out.csv")
    assert "the run is not finished (finelens resume)" in line
    assert not (tmp_path / "out.csv").exists()


def test_predict_with_a_damaged_model(fails, adapted, world, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in fails("predict", tmp_path / "run", world / "new", "--csv", tmp_path / "out.csv")


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "RUN", "HIDDEN", "--csv", "out.csv"),
        ("predict", "RUN", "PHOTOS", "--csv", "HIDDEN"),
        ("predict", "RUN", "PHOTOS", "--csv", "out.csv", "--in", "HIDDEN"),
        ("predict", "HIDDEN", "PHOTOS", "--csv", "out.csv"),
        ("adapt", "HIDDEN", "--classes", "CLASSES", "--out", "r"),
        ("adapt", "PHOTOS", "--classes", "CLASSES", "--out", "r", "--backbone", "local:HIDDEN"),
        ("write", "RUN", "--to", "xmp", "--out", "HIDDEN"),
        ("features", "HIDDEN", "--out", "f.safetensors"),
    ],
)
def test_in_a_folder_that_may_not_be_entered(fails, adapted, world, tmp_path, monkeypatch, arguments):
    """Looking whether something is there ended in a traceback."""
    hidden, look = tmp_path / "hidden" / "x", os.stat

    def refused(path, *args, **given):
        if not isinstance(path, int) and os.fsdecode(path).startswith(os.fspath(hidden)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path, *args, **given)

    names = {"RUN": adapted, "PHOTOS": world / "photos", "CLASSES": world / "classes.txt", "HIDDEN": hidden}
    given = [str(names.get(word, word)).replace("HIDDEN", str(hidden)) for word in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "stat", refused)
    assert str(hidden) in fails(*given)


def test_predict_nothing(fails, adapted, tmp_path):
    assert "nowhere" in fails("predict", adapted, tmp_path / "nowhere", "--csv", tmp_path / "out.csv")


def test_predict_over_the_answers_of_a_run(fails, adapted, world):
    for name in ("predictions.csv", "predictions_part.csv"):
        own = adapted / name
        before = own.read_bytes() if own.exists() else None
        for given in (("predict", adapted, world / "photos"), ("join", own.with_name("a-00001-of-00001.csv"))):
            assert "holds the answers of the run" in fails(*given, "--csv", own)
        assert (own.read_bytes() if own.exists() else None) == before


def test_predict_into_a_folder(fails, adapted, world, tmp_path):
    assert str(tmp_path) in fails("predict", adapted, world / "new", "--csv", tmp_path)


def test_evaluate_with_folders_of_no_class(fails, adapted, tmp_path, photos):
    shutil.copytree(photos, tmp_path / "test")
    (tmp_path / "test" / CLASSES[0]).rename(tmp_path / "test" / "red strip")
    assert "nearest class: 'red stripe'" in fails("evaluate", adapted, tmp_path / "test", "--labels", "folders")


def test_evaluate_with_a_label_of_no_class(fails, adapted, photos, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\nred stripe/0.png,red stripes\n")
    assert "did you mean 'red stripe'?" in fails("evaluate", adapted, photos, "--labels", tmp_path / "labels.csv")


def test_evaluate_without_a_labels_file(fails, adapted, photos, tmp_path):
    assert "labels.csv" in fails("evaluate", adapted, photos, "--labels", tmp_path / "labels.csv")


def test_run_written_by_a_newer_version(fails, adapted, world, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    assert "upgrade finelens" in fails("resume", tmp_path / "run")
    assert "upgrade finelens" in fails("predict", tmp_path / "run", world / "new", "--csv", tmp_path / "out.csv")


def test_loss_that_is_not_finite_stops_with_a_remedy(run, given, tmp_path):
    result = run("adapt", *given, "--out", tmp_path / "run", *FAST, "--set", "training.lr=1e30")
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("finelens: the loss became")
    assert "training.lr" in line
    assert not (tmp_path / "run" / "model").exists()


def test_a_failed_start_with_overwrite_leaves_the_earlier_run_alone(run, given, adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for wrong in (("--backbone", "local:nowhere"), ("--device", "cuda:99"), ("--method", "mikroclip")):
        assert run("adapt", *given, "--out", tmp_path / "run", "--overwrite", *wrong).code == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_out_of_memory_names_what_to_lower(run, given, tmp_path, monkeypatch):
    def step(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes")

    monkeypatch.setattr("finelens.methods.microclip.task.MicroClip.step", step)
    result = run("adapt", *given, "--method", "microclip", "--out", tmp_path / "run")
    assert result.code == 2
    assert "out of memory in epoch 1, step 1" in result.err.splitlines()[-1]
    assert "training.batch_size" in result.err.splitlines()[-1]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("finelens-views")]


def test_the_image_library_says_nothing_of_its_own(run, given, tmp_path):
    """Damaged EXIF: with every page and every later look the terminal had the library's own warning, without the file's name."""
    picture = Image.effect_mandelbrot((64, 48), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for words in (("zero-shot", tmp_path / "photos", *given[1:], "--out", tmp_path / "run"), ("report", tmp_path / "run")):
            assert run(*words).code == 0
    assert not [str(warning.message) for warning in said if "EXIF" in str(warning.message)]
