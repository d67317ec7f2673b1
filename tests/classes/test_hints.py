"""Labels that a person gives on purpose: read, matched to images, and refused where they could have no effect."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from finelens import api
from finelens.classes.hint_doubts import doubts_of
from finelens.classes.hints import NONE_OF_THESE, describe_hints, hints_by_position, hints_digest, names_of_run, read_hints, with_new_names
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.images.decode import DecodeLimits
from finelens.images.discover import discover
from finelens.images.load import load
from finelens.methods.registry import check_hints, find_method
from finelens.protocol import Hints, ImageRecord
from tests.toy import CLASSES, QUIET, digest, events, options_for, write_classes, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", ["a", "b", "c", "d"], per_class=2)


def write_hints(path, *rows):
    path.write_text("path,label\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_positions_are_those_of_the_store(tmp_path, photos):
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    file = write_hints(tmp_path / "hints.csv", "d/1.png,yellow ramp", "a/0.png,red stripe", "b/1.png,")
    hints = read_hints(file, photos, loaded.records, CLASSES)
    by_name = {record.name: record.index for record in loaded.records}
    assert dict(zip(hints.index.tolist(), hints.label.tolist(), strict=True)) == {
        by_name["d/1.png"]: 3,
        by_name["a/0.png"]: 0,
        by_name["b/1.png"]: NONE_OF_THESE,
    }
    assert hints.index.tolist() == sorted(hints.index.tolist())
    assert describe_hints(hints, CLASSES) == "hints: 3 images (2 with a class, 1 as none of the classes), 2 of 4 classes"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a/0.png,red strip", "did you mean 'red stripe'"),
        ("../a/0.png,red stripe", "leaves"),
        ("a/0.png,green check", "keep one of the two"),
        ("a/0.png,", "keep one of the two"),
    ],
)
def test_a_bad_row_is_named(tmp_path, photos, row, words):
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    with pytest.raises(UserError, match=words):
        read_hints(write_hints(tmp_path / "hints.csv", "a/0.png,red stripe", row), photos, loaded.records, CLASSES)


def test_none_in_words_is_no_class_and_a_question_mark_no_answer(tmp_path, photos):
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    file = write_hints(tmp_path / "hints.csv", "a/0.png,None", "a/1.png,none of these", "b/0.png,?", "b/1.png,red stripe")
    assert sorted(read_hints(file, photos, loaded.records, CLASSES).label.tolist()) == [-1, -1, CLASSES.index("red stripe")]
    assert with_new_names(file, CLASSES) == list(CLASSES)
    # Unless a class is called so.
    assert with_new_names(file, ["None", "red stripe"]) == ["None", "red stripe"]
    open_ = write_hints(tmp_path / "open.csv", "a/0.png,?")
    with pytest.raises(UserError, match="every label is still"):
        read_hints(open_, photos, loaded.records, CLASSES)


def test_names_that_only_the_hints_have_come_after_the_list(tmp_path):
    file = write_hints(tmp_path / "hints.csv", "x.png,tabby cat", "y.png,Red_Stripe", "z.png,Tabby_Cat", "u.png,owl", "v.png,", "w.png,tabby cat")
    assert with_new_names(file, CLASSES) == [*CLASSES, "owl", "Tabby_Cat"]
    assert with_new_names(file, []) == ["owl", "Red_Stripe", "Tabby_Cat"]
    with pytest.raises(UserError, match=r"line 3: 'red strip' is not in the class list; did you mean 'red stripe'"):
        with_new_names(write_hints(file, "x.png,owl", "y.png,red strip"), CLASSES)
    many = ["v.png,red strip", "w.png,redd stripe"]
    with pytest.raises(UserError) as caught:
        with_new_names(write_hints(file, "x.png,owl", *many, "y.png,red strpe"), CLASSES)
    assert [f"line {i}: " in str(caught.value) for i in range(2, 6)] == [False, True, True, True]


def test_hints_about_unreadable_files_alone_are_refused(tmp_path, photos):
    (photos / "broken.jpg").write_bytes(b"no picture")
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    file = write_hints(tmp_path / "hints.csv", "broken.jpg,red stripe")
    with pytest.raises(UserError, match="none of its 1 files"):
        read_hints(file, photos, loaded.records, CLASSES)


def test_hints_about_files_that_are_not_there_are_counted(tmp_path, photos):
    (photos / "broken.jpg").write_bytes(b"no picture")
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    rows = ("a/7.png,red stripe", "a/0.png,red stripe", "broken.jpg,red stripe")
    left_out: list[str] = []
    hints = read_hints(write_hints(tmp_path / "hints.csv", *rows), photos, loaded.records, CLASSES, left_out)
    assert describe_hints(hints, CLASSES) == "hints: 1 image, 1 of 4 classes"
    assert [line.rpartition("hints.csv', ")[2].partition("; ")[0] for line in left_out] == [
        f"line 2: there is no file 'a/7.png' in '{photos}'",
        "'broken.jpg' is not an image that can be read",
    ]
    with pytest.raises(UserError, match=r"line 2: there is no file 'a/7\.png'.*give paths relative"):
        read_hints(write_hints(tmp_path / "hints.csv", rows[0]), photos, loaded.records, CLASSES)


def test_a_run_says_which_hints_it_leaves_out(tmp_path, photos, tiny_vit, capsys):
    file = write_hints(tmp_path / "hints.csv", "a/0.png,red stripe", "gone.png,red stripe")
    given = {"method": "gda-em", "backbone": f"local:{tiny_vit}", "hints": file, "options": {"training": {"precision": "float32"}}}
    api.adapt(photos, write_classes(tmp_path / "classes.txt"), tmp_path / "run", **given)
    assert "1 hint is left out, the first because: hints file" in capsys.readouterr().err
    assert (tmp_path / "run/given_hints.csv").read_text().splitlines() == ["path,label", "a/0.png,red stripe"]


def test_hints_by_position():
    records = [ImageRecord("[0]", "ok", index=1), ImageRecord("[1]", "ok", index=0), ImageRecord("[2]", "corrupt", "cut short")]
    hints = hints_by_position({0: "blue disc", 1: ""}, records, CLASSES)
    assert (hints.index.tolist(), hints.label.tolist()) == ([0, 1], [NONE_OF_THESE, 2])
    for given, words in (({3: "blue disc"}, "position 3"), ({2: "blue disc"}, "cut short"), ({0: "blue disk"}, "did you mean 'blue disc'")):
        with pytest.raises(UserError, match=words):
            hints_by_position(given, records, CLASSES)


def test_the_digest_follows_what_the_hints_say():
    hints = Hints(torch.tensor([0, 2]), torch.tensor([1, 1]))
    assert hints_digest(hints) == hints_digest(replace(hints))
    assert hints_digest(hints) != hints_digest(replace(hints, label=torch.tensor([1, 0])))


def test_a_method_that_does_not_adapt_takes_no_hints_and_a_few_shot_method_needs_them():
    with pytest.raises(UserError, match="no effect"):
        check_hints(find_method("zero-shot"), given=True)
    few_shot = replace(find_method("stata"), needs=frozenset({"hints"}))
    with pytest.raises(UserError, match=r"--hints FILE\.csv"):
        check_hints(few_shot, given=False)
    check_hints(few_shot, given=True)


def test_a_run_keeps_its_hints_and_goes_on_with_them_alone(tiny_vit, tmp_path, photos):
    file = write_hints(tmp_path / "hints.csv", "a/0.png,red stripe")
    options = options_for("dpa", epochs=1)
    run = tmp_path / "run"
    api.adapt(
        photos,
        write_classes(tmp_path / "classes.txt"),
        run,
        hints=file,
        backbone=f"local:{tiny_vit}",
        method="dpa",
        options=options,
        console=QUIET,
    )
    logged = next(event for event in events(run) if event["event"] == "hints")
    assert logged["count"] == 1
    assert (run / "given_hints.csv").read_text() == "path,label\na/0.png,red stripe\n"
    unfinished = [shutil.copytree(run, tmp_path / name) for name in ("added", "gone", "tampered")]
    for folder in unfinished:
        lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
        (folder / "events.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    # A review adds answers to the file while the run waits, or moves it.
    write_hints(file, "a/0.png,red stripe", "b/1.png,green check")
    assert api.resume(unfinished[0], console=QUIET) is not None
    file.unlink()
    assert api.resume(unfinished[1], console=QUIET) is not None
    for folder in unfinished[:2]:
        assert digest(folder / "model/model.safetensors") == digest(run / "model/model.safetensors")
        assert events(folder) == events(run)
    write_hints(unfinished[2] / "given_hints.csv", "a/0.png,green check")
    with pytest.raises(UserError, match=r"hints in .*given_hints\.csv have changed"):
        api.resume(unfinished[2], console=QUIET)


@pytest.mark.parametrize("answer", ["dont know", "don't know", "Don\u2019t know", "unknown", "Unsure", "not_sure?", "unclear", "??", "? ?"])
def test_whoever_cannot_say_names_no_class(tmp_path, answer):
    file = write_hints(tmp_path / "hints.csv", "x.png,pug", f"y.png,{answer}")
    with pytest.raises(UserError, match=r"line 3: .* is no name of a class; write \? for a photograph that is not answered, and none for one of no"):
        with_new_names(file, ["pug"])
    assert with_new_names(file, ["pug", answer]) == ["pug", answer]


def test_a_new_name_that_is_part_of_a_listed_one_is_doubted(tmp_path):
    listed = ["persian cat", "Pug-dog", "persian rug", "owl"]
    file = write_hints(tmp_path / "hints.csv", "x.png,pug", "y.png,persian", "z.png,barn owl", "w.png,heron")
    names, new = names_of_run(listed, file)
    assert names == [*listed, *new]
    assert doubts_of(file, listed, new) == [
        "'owl' of the list is part of 'barn owl': if that is meant, write 'owl'; "
        "'persian' is part of 'persian cat', 'persian rug' of the list: if one of them is meant, write it in full; "
        "'pug' is part of 'Pug-dog' of the list: if that is meant, write 'Pug-dog'"
    ]
    assert doubts_of(file, [], [*listed, *new]) == []


def test_more_empty_labels_than_names_are_doubted(tmp_path):
    file, blank = tmp_path / "hints.csv", [f"{i}.png," for i in range(8)]
    write_hints(file, "x.png,pug", "y.png,?", *blank)
    assert doubts_of(file, ["pug"], []) == [
        "8 photographs have an empty label, which means none of the classes; write ? for those that are not answered"
    ]
    write_hints(file, *(f"n{i}.png,pug" for i in range(8)), *blank)
    assert doubts_of(file, ["pug"], []) == []
    write_hints(file, "x.png,pug", *(f"{line}none" for line in blank))
    assert doubts_of(file, ["pug"], []) == []
    # Answers of the review page: a person said none of each.
    file.write_text("path,label,source,by,group\nx.png,pug,photo,,\n" + "".join(f"{line},photo,,\n" for line in blank))
    assert doubts_of(file, ["pug"], []) == []


def test_a_run_says_what_its_hints_may_mean_otherwise(tmp_path, photos, tiny_vit, capsys):
    file = write_hints(tmp_path / "hints.csv", "a/0.png,red", "b/1.png,", "c/0.png,")
    options = {"hints": file, "options": options_for("consensus"), "console": Console()}
    found = api.adapt(photos, write_classes(tmp_path / "classes.txt"), tmp_path / "run", backbone=f"local:{tiny_vit}", **options)
    said = capsys.readouterr().err
    assert "'red' is part of 'red stripe' of the list: if that is meant, write 'red stripe'" in said
    assert "2 photographs have an empty label, which means none of the classes; write ? for" in said
    assert "red" in {row.label for row in found.rows}
    # --dry-run says the same.
    api.plan(photos, tmp_path / "classes.txt", tmp_path / "run-2", backbone=f"local:{tiny_vit}", **options)
    assert "'red' is part of 'red stripe' of the list" in capsys.readouterr().err


def test_what_hints_may_mean_otherwise_is_said_once_and_before_models_are_ranked(tmp_path, photos, tiny_vit, tiny_resnet):
    """Ranking takes minutes, and the names that are doubted take part in it."""
    file = write_hints(tmp_path / "hints.csv", "a/0.png,red", "b/1.png,")
    both = f"local:{tiny_vit},local:{tiny_resnet}"
    said: list[str] = []

    class Listening(Console):
        def say(self, line, *_):
            said.append(line)

        warn = say

    given = {"backbone": both, "hints": file, "method": "stata", "console": Listening()}
    api.adapt(photos, write_classes(tmp_path / "classes.txt"), tmp_path / "run", **given)
    (doubt,) = [i for i, line in enumerate(said) if "is part of 'red stripe'" in line]
    assert doubt < next(i for i, line in enumerate(said) if line.startswith("backbone: of 2 models"))
