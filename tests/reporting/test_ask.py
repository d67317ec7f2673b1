"""``finelens.ask`` and ``review --ask``: runs on photographs and on features, answers so far, and the CSV file."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

import finelens
from finelens import api
from finelens.classes.hints import no_tests
from finelens.classes.merging import merge_hints
from finelens.cli import main
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.evaluation.prequential import ONE_IN
from finelens.reporting.record import read_run
from finelens.reporting.review.worth import DRAWN, questions
from finelens.runs.folder import RunFolder
from finelens.storage.predictions import read_predictions
from tests.solvers.data import cloud
from tests.toy import QUIET, write_classes, write_photos


@pytest.fixture(scope="module")
def on_features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ask")
    x, w, _ = cloud([20, 12, 8])
    np.save(folder / "x.npy", x)
    np.save(folder / "w.npy", w)
    (folder / "names.txt").write_text("a\nb\nc\n")
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run", prototypes=folder / "w.npy", method="stata", console=QUIET)
    return folder / "run"


def test_photographs_are_asked_about_once_and_in_the_same_order(plain_run, tmp_path):
    found = finelens.ask(plain_run, 5, console=QUIET)
    # A broken file is no question, and a copy is the same one.
    assert len({look.path for look in found}) == len(found) == 5
    assert not {"broken.jpg", "copy.png"} & {look.path for look in found} or "red stripe/0.png" not in {look.path for look in found}
    assert finelens.ask(plain_run, 5, csv=tmp_path / "q.csv", console=QUIET) == found
    with open(tmp_path / "q.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"path": look.path, "label": "", "why": look.why, "expected": look.expected} for look in found]


def test_answers_are_not_asked_again(on_features):
    first = finelens.ask(on_features, 2, console=QUIET)
    (on_features / "hints.csv").write_text("path,label\n" + "".join(f"{look.path},a\n" for look in first))
    second = finelens.ask(on_features, 4, console=QUIET)
    (on_features / "hints.csv").unlink()
    assert not {look.path for look in first} & {look.path for look in second}
    assert "speaks for about" in first[0].why


def test_the_command_writes_the_order(on_features, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["review", str(on_features), "--ask", "3", "--csv", str(tmp_path / "q.csv")])
    assert ended.value.code == 0
    assert (tmp_path / "q.csv").read_text().splitlines()[0] == "path,label,why,expected"
    assert len((tmp_path / "q.csv").read_text().splitlines()) == 4


def test_without_a_name_the_questions_go_into_the_run_folder(on_features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for images, file in ((on_features, on_features / "questions.csv"), (on_features.parent / "x.npy", tmp_path / "hints.csv")):
        with pytest.raises(SystemExit) as ended:
            main(["review", str(images), "--ask", "3", "--csv"])
        assert ended.value.code == 0
        assert len(file.read_text().splitlines()) == 4
        file.unlink()


def test_a_sheet_of_an_older_version_is_replaced(on_features, tmp_path):
    file = tmp_path / "q.csv"
    file.write_text("path,why,expected\n0.jpg,typical,a\n")
    found = finelens.ask(on_features, 2, csv=file, console=QUIET)
    assert [line.split(",")[:2] for line in file.read_text().splitlines()] == [["path", "label"], *([look.path, ""] for look in found)]
    # One that somebody gave the missing column keeps its names.
    file.write_text(f"path,why,expected,label\n{found[0].path},typical,a,b\n")
    finelens.ask(on_features, 2, csv=file, console=QUIET)
    assert file.read_text().splitlines()[1].startswith(f"{found[0].path},b,answered")
    file.write_text("path,why,else\n")
    with pytest.raises(UserError, match="was not written by finelens"):
        finelens.ask(on_features, 2, csv=file, console=QUIET)


@pytest.mark.parametrize("order", ["worth", "doubt"])
def test_the_file_is_filled_in_and_given_as_hints(on_features, tmp_path, order, capsys):
    file, features = tmp_path / "q.csv", on_features.parent / "x.npy"
    first = finelens.ask(on_features, 4, csv=file, order=order, console=Console())
    assert f"--hints {file}" in capsys.readouterr().err.splitlines()[-1]
    given = {"prototypes": on_features.parent / "w.npy", "console": QUIET}
    with pytest.raises(UserError, match="no photograph has a name yet; write them into the column label"):
        api.adapt(features, on_features.parent / "names.txt", tmp_path / "run", hints=file, **given)
    # The person names two, and says of a third that it is none of the classes.
    head, *lines = file.read_text().splitlines()
    names = ["a", "b", "none", ""]
    file.write_text("\n".join([head, *(line.replace(",,", f",{name},", 1) for line, name in zip(lines, names, strict=True)), ""]))
    found = api.adapt(features, on_features.parent / "names.txt", tmp_path / "run", hints=file, **given)
    told = {row.path: row.label for row in found.rows if row.answered}
    assert told == {first[0].path: "a", first[1].path: "b", first[2].path: None}
    # The same command again keeps them, and asks about others.
    more = finelens.ask(on_features, 3, csv=file, order=order, console=QUIET)
    assert not set(told) & {look.path for look in more}
    with open(file, encoding="utf-8", newline="") as sheet:
        rows = list(csv.DictReader(sheet))
    assert [(row["path"], row["label"]) for row in rows] == [
        *((look.path, name) for look, name in zip(first, names, strict=True) if name),
        *((look.path, "") for look in more),
    ]


def test_another_file_holds_what_the_run_was_given(on_features, tmp_path):
    """Its command is the next round, which would forget the answers of this one."""
    names, features = on_features.parent / "names.txt", on_features.parent / "x.npy"
    asked = [look.path for look in finelens.ask(on_features, 3, console=QUIET)]
    (tmp_path / "given.csv").write_text(f"path,label\n{asked[0]},a\n{asked[1]},none\n")
    given = {"prototypes": on_features.parent / "w.npy", "console": QUIET, "hints": tmp_path / "given.csv"}
    api.adapt(features, names, tmp_path / "run", **given)
    (tmp_path / "run" / "hints.csv").write_text(f"path,label\n{asked[2]},b\n")
    finelens.ask(tmp_path / "run", 2, csv=tmp_path / "more.csv", console=QUIET)
    with open(tmp_path / "more.csv", encoding="utf-8", newline="") as sheet:
        told = {row["path"]: row["label"] for row in csv.DictReader(sheet) if row["label"]}
    assert told == {asked[0]: "a", asked[1]: "none", asked[2]: "b"}


def hows(file):
    with open(file, encoding="utf-8", newline="") as sheet:
        return {row["path"]: (row.get("source"), row.get("by"), row.get("group")) for row in csv.DictReader(sheet) if row["label"] not in ("", "?")}


def test_how_an_answer_was_given_stays_with_it_wherever_it_is_written_again(on_features, tmp_path):
    """Of a group one answer tests the model, in the second round and in any after it."""
    names, features = on_features.parent / "names.txt", on_features.parent / "x.npy"
    asked = [look.path for look in finelens.ask(on_features, 4, console=QUIET)]
    pairs = zip(asked, [f"a,group,Ada,./{asked[1]}", f"b,group,Ada,{asked[1]}", "c,group,Ben,", "a,,,"], strict=True)
    (tmp_path / "hints.csv").write_text("path,label,source,by,group\n" + "".join(f"./{path},{told}\n" for path, told in pairs))
    expected = dict(zip(asked, [("group", "Ada", asked[1]), ("group", "Ada", asked[1]), ("group", "Ben", ""), ("", "", "")], strict=True))
    api.adapt(features, names, tmp_path / "run", prototypes=on_features.parent / "w.npy", hints=tmp_path / "hints.csv", console=QUIET)
    assert hows(tmp_path / "run" / "given_hints.csv") == expected
    # The user's file may be gone by then.
    (tmp_path / "hints.csv").rename(tmp_path / "run" / "hints.csv")
    sheet = tmp_path / "more.csv"
    for _ in range(2):
        finelens.ask(tmp_path / "run", 2, csv=sheet, console=QUIET)
        assert {path.removeprefix("./"): how for path, how in hows(sheet).items()} == expected
        (tmp_path / "run" / "hints.csv").unlink(missing_ok=True)
    merge_hints([sheet], tmp_path / "all.csv", console=QUIET)
    merged = {path: (source, group) for path, (source, _, group) in hows(tmp_path / "all.csv").items()}
    assert merged == {path: (source, group) for path, (source, _, group) in expected.items()}
    with api.review_server(tmp_path / "run", tmp_path / "live.csv", order=api.WORTH, console=QUIET) as server:
        look = server.session.look("tab")
        server.session.answer("tab", "Cyd", look["id"], "a", [])
    live = hows(tmp_path / "live.csv")
    assert {path: live[path] for path in asked} == expected | {asked[3]: ("file", "", "")}
    assert no_tests(tmp_path / "live.csv") >= {asked[0], asked[2]}
    assert asked[1] not in no_tests(tmp_path / "live.csv")
    page = api.review(tmp_path / "run", console=QUIET).read_text()
    told = json.loads(re.search(r'id="review-data">(.*?)</script>', page, re.S)[1])["told"]
    assert told == {path: list(how) for path, how in expected.items() if any(how)}


def test_answers_without_a_run_keep_how_they_were_given(tmp_path):
    np.save(tmp_path / "x.npy", cloud([20, 12, 8])[0])
    sheet = tmp_path / "q.csv"
    first = finelens.ask(tmp_path / "x.npy", 1, csv=sheet, console=QUIET)[0].path
    sheet.write_text(f"path,label,why,source,by\n{first},oak,answered,group,Ada\n")
    finelens.ask(tmp_path / "x.npy", 3, csv=sheet, console=QUIET)
    assert hows(sheet) == {first: ("group", "Ada", "")}


def test_the_sheet_takes_either_order(plain_run, tmp_path):
    doubt = finelens.ask(plain_run, 4, order="doubt", console=QUIET)
    assert doubt == finelens.ask(plain_run, 4, order="doubt", console=QUIET)
    page = api.review(plain_run, tmp_path / "sheet.html", limit=3, order="worth", console=QUIET).read_text()
    assert "photographs" in page
    with pytest.raises(UserError, match="worth or doubt"):
        finelens.ask(plain_run, 4, order="luck", console=QUIET)


@pytest.mark.parametrize("arguments", [["--csv", "q.csv"], ["--csv", "q.csv", "--ask", "2", "--serve"]])
def test_a_csv_file_needs_ask_and_no_page(on_features, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["review", str(on_features), *arguments])
    assert ended.value.code == 2
    assert "--ask" in capsys.readouterr().err


def test_one_question_in_five_is_drawn_and_the_others_go_on_from_there():
    x, _, _ = cloud([30] * 4)
    looks, doubt, nobody = torch.tensor(x), torch.ones(len(x)), torch.zeros(0, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).tolist()
    first, drawn = questions(looks, doubt, nobody, order, 12, classes=4)
    assert drawn.nonzero()[:, 0].tolist() == [4, 9]
    assert first.rows[drawn].tolist() == order[:2]
    assert len(first.rows.unique()) == 12
    # Four more answers: sixteen make three drawn ones.
    answered = first.rows.sort().values
    more, drawn = questions(looks, doubt, answered, order, 4, classes=4)
    assert drawn.tolist() == [False, False, True, False]
    assert not set(more.rows.tolist()) & set(answered.tolist())


def test_answers_of_groups_make_no_more_drawn_questions():
    x, _, _ = cloud([60] * 4)
    looks, doubt = torch.tensor(x), torch.ones(len(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).tolist()
    # Ten looks: two drawn photographs, and eight groups with 65 photographs in all, as a served review leaves them.
    answered, looked = torch.tensor(sorted(order[:2] + order[100:165])), 10
    for n, wanted in ((10, 2), (5, 1), (1, 0)):
        assert int(questions(looks, doubt, answered, order, n, classes=4, asked=looked)[1].sum()) == wanted
        # No more than one in five where nobody wrote down which were groups.
        assert int(questions(looks, doubt, answered, order, n, classes=4)[1].sum()) <= -(-n // ONE_IN)
    total = 0
    for _ in range(4):
        asked, drawn = questions(looks, doubt, answered, order, 10, classes=4, asked=looked)
        total, looked, answered = total + int(drawn.sum()), looked + 10, torch.cat([answered, asked.rows])
    assert total == 40 // ONE_IN


def test_a_served_review_leaves_questions_of_both_kinds(on_features, tmp_path):
    paths = [row.path for row in read_predictions(on_features / "predictions.csv")]
    sheet = tmp_path / "q.csv"
    sheet.write_text("path,label,why,expected,source,by\n" + "".join(f"{path},a,answered,,group,Ada\n" for path in paths[:16]))
    assert [look.drawn for look in finelens.ask(on_features, 10, csv=sheet, console=QUIET)] == [False] * 4 + [True] + [False] * 4 + [True]
    # Two looks at a group each: the third drawn question from here on.
    told = (f"{path},a,answered,,group,Ada,{paths[8 * (i // 8)]}\n" for i, path in enumerate(paths[:16]))
    sheet.write_text("path,label,why,expected,source,by,group\n" + "".join(told))
    assert [look.drawn for look in finelens.ask(on_features, 5, csv=sheet, console=QUIET)] == [False, False, True, False, False]


def test_a_single_question_may_be_a_drawn_one():
    x, _, _ = cloud([30] * 4)
    order = list(range(len(x)))[::-1]
    asked, drawn = questions(torch.tensor(x), torch.ones(len(x)), torch.tensor([0, 1, 2, 3]), order, 1, classes=4)
    assert (asked.rows.tolist(), drawn.tolist()) == ([order[0]], [True])


def test_the_sheet_says_which_are_drawn(on_features):
    found = finelens.ask(on_features, 10, console=QUIET)
    assert [look.why == DRAWN for look in found] == [look.drawn for look in found]
    assert sum(look.drawn for look in found) == 2
    assert all(look.speaks_for >= 1 for look in found)


def test_photographs_that_have_moved(tmp_path, capsys):
    """What a run shows and asks about follows them, and the next command names where they are."""
    photos = write_photos(tmp_path / "photos", per_class=6)
    run = tmp_path / "run"
    api.zero_shot(photos, write_classes(tmp_path / "names.txt"), run, console=QUIET)
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"are not in .*photos any more; say where they are with --photos"):
        finelens.ask(run, 2, console=QUIET)
    api.review(run, console=QUIET)
    assert "the page shows no photographs; say where they are with --photos" in capsys.readouterr().err
    assert "data:image" not in (run / "review.html").read_text("utf-8")
    api.review(run, photos=tmp_path / "moved", console=QUIET)
    assert "data:image" in (run / "review.html").read_text("utf-8")
    page = api.report(run, photos=tmp_path / "moved", console=QUIET).read_text("utf-8")
    assert "data:image" in page
    assert len(finelens.ask(run, 2, csv=tmp_path / "q.csv", photos=tmp_path / "moved", console=Console())) == 2
    assert f"finelens adapt {tmp_path / 'moved'} --classes" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--photos .*moves does not exist; did you mean .*moved\?"):
        api.report(run, photos=tmp_path / "moves", console=QUIET)
    with pytest.raises(UserError, match="without a run give their folder"):
        finelens.ask(tmp_path / "moved", 2, photos=tmp_path, console=QUIET)


def test_a_report_shows_no_others_of_the_same_names(tmp_path, capsys):
    """Cameras give the same names again: what lies there now was not what the run answered about."""
    photos, run = write_photos(tmp_path / "photos", per_class=6), tmp_path / "run"
    api.zero_shot(photos, write_classes(tmp_path / "names.txt"), run, console=QUIET)
    shown = (run / "report.html").read_text("utf-8").count("data:image/jpeg")
    first, second, *_ = sorted(photos.rglob("*.png"))
    shutil.copy(second, first)
    capsys.readouterr()
    page = api.report(run, console=Console()).read_text("utf-8")
    assert 0 < page.count("data:image/jpeg") < shown
    told = capsys.readouterr().err
    assert "1 photograph is not what the run saw (first: " in told
    # Nor does anything else take the one for the other.
    name = first.relative_to(photos).as_posix()
    api.review(run, console=Console())
    assert "the page does not show them" in capsys.readouterr().err
    assert name not in {question.path for question in api.ask(run, 50, console=Console())}
    assert "nobody is asked about them" in capsys.readouterr().err
    api.explain(run, first, console=Console())
    assert "what is explained is the photograph of now" in capsys.readouterr().err
    found = api.explain(run, next(path for path in sorted(photos.rglob("*.png")) if path not in (first, second)), console=Console())
    assert "not what the run saw" not in capsys.readouterr().err
    assert name not in {path for side in found.sides for path, _ in side.nearest or ()}
    for place, why in ((tmp_path / "names.txt", "holds no photographs"), (run, "none of the run's photographs is in")):
        assert "data:image/jpeg" not in api.report(run, photos=place, console=Console()).read_text("utf-8")
        assert why in capsys.readouterr().err


def test_a_sheet_elsewhere_does_not_claim_the_run(tmp_path):
    """As for a run on a disk that cannot be written to."""
    run = tmp_path / "run"
    api.zero_shot(write_photos(tmp_path / "photos", per_class=2), write_classes(tmp_path / "names.txt"), run, console=QUIET)
    with RunFolder.open(run):
        assert api.review(run, tmp_path / "sheet.html", console=QUIET).is_file()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Features of 240 images, and a run on them without answers."""
    folder = tmp_path_factory.mktemp("wide")
    x, w, y = cloud([60] * 4, spread=0.4, tilt=1.5)
    np.save(folder / "x.npy", x)
    np.save(folder / "w.npy", w)
    (folder / "names.txt").write_text("a\nb\nc\nd\n")
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run", prototypes=folder / "w.npy", console=QUIET)
    return folder, ["abcd"[i] for i in y]


def test_the_page_and_the_second_round_say_the_same_of_the_same_answers(wide):
    """Of groups, single photographs and what a file of before says of either."""
    folder, truth = wide
    hints = folder / "hints.csv"
    with api.review_server(folder / "run", hints, order=api.WORTH, console=QUIET) as server:
        session = server.session
        paths = list(session.subject.paths)
        names = dict(zip(paths, truth, strict=True))
        groups = 0
        for _ in range(12):
            with session.tutor.changed:
                assert session.tutor.changed.wait_for(lambda: not session.tutor.learning, 60)
            look = session.look("tab")
            seen = [photo["path"] for photo in look["photos"]]
            groups += len(seen) > 1
            # Of one group the middle is odd.
            name = names[seen[-1 if groups == 2 else 0]]
            session.answer("tab", "Ada", look["id"], name, [path for path in seen if names[path] != name])
        with session.tutor.changed:
            assert session.tutor.changed.wait_for(lambda: not session.tutor.busy, 60)
        told = session.state()["progress"]
    assert groups > 5
    with open(hints, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    middles = [row for row in rows if row["path"] == row["group"]]
    assert len(middles) >= groups - 1
    assert told["tested"] == len(middles) + sum(row["source"] == "photo" and not row["group"] for row in rows) < len(rows)
    again = {"prototypes": folder / "w.npy", "console": QUIET, "hints": hints}
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run-2", **again)
    found = read_run(RunFolder.open(folder / "run-2", lock=False)).answered
    assert (found.estimate, found.low, found.high) == pytest.approx((told["estimate"], told["low"], told["high"]), abs=1e-4)
    # The file of before says neither middle nor group: those photographs test nothing, and a single photograph does.
    older = folder / "older.csv"
    older.write_text("path,label,source,by\n" + "".join(f"{row['path']},{row['label']},{row['source']},{row['by']}\n" for row in rows))
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run-3", **{**again, "hints": older})
    found = read_run(RunFolder.open(folder / "run-3", lock=False)).answered
    assert (found.answers, found.few_tests) == (len(rows), sum(row["source"] == "photo" for row in rows))
