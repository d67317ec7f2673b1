"""The live review: what is kept, what is asked, and that nothing is lost when the program is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finelens import api
from finelens.classes.hints import how_given, with_new_names
from finelens.errors import UserError
from finelens.evaluation.prequential import ONE_IN
from finelens.reporting.review import session as session_module
from finelens.reporting.review.answers import read_answers
from finelens.reporting.review.belief import Belief
from finelens.reporting.review.log import Act, Answer, AnswerLog, Question
from finelens.reporting.review.order import Look
from finelens.reporting.review.plan import InOrder, by_worth
from finelens.reporting.review.server import _undo
from finelens.reporting.review.session import Session
from finelens.reporting.review.subject import Subject
from finelens.reporting.thumbnails import no_photos
from finelens.solvers.known import Known
from finelens.solvers.learner import Learner
from finelens.storage.predictions import PredictionRow
from tests.reporting.woods import NAMES, SIZES, TRUTH, truth
from tests.solvers.data import cloud
from tests.toy import QUIET


@pytest.fixture(scope="module")
def subject():
    x, w, _ = cloud(SIZES)
    paths = tuple(f"{i:03}.png" for i in range(len(TRUTH)))
    learner = Learner([torch.as_tensor(x).float()], torch.as_tensor(w).float(), 20.0)
    return Subject("woods", NAMES, paths, paths, learner, no_photos, "finelens adapt", {}, False)


def few_of(subject, count):
    """The same with every so many photographs."""
    rows = [round(i * len(TRUTH) / count) for i in range(count)]
    x, w, _ = cloud(SIZES)
    paths = tuple(subject.paths[row] for row in rows)
    learner = Learner([torch.as_tensor(x[rows]).float()], torch.as_tensor(w).float(), 20.0)
    return Subject("few", NAMES, paths, paths, learner, no_photos, "finelens adapt", {}, False)


@contextmanager
def answering(subject, hints, goal=20, plan=by_worth) -> Iterator[Session]:
    session = Session(subject, hints, plan, goal)
    try:
        yield session
    finally:
        session.close()
        session.tutor.join()


def settled(session):
    with session.tutor.changed:
        assert session.tutor.changed.wait_for(lambda: not session.tutor.busy, 60)
    return session.state()


def play(session, looks):
    """Answer rightly, taking out of a group what is unlike its first; waits until the model has learnt each answer."""
    for _ in range(looks):
        with session.tutor.changed:
            assert session.tutor.changed.wait_for(lambda: not session.tutor.learning, 60)
        look = session.look("tab")
        paths = [photo["path"] for photo in look["photos"]]
        session.answer("tab", "Ada", look["id"], truth(paths[0]), [path for path in paths if truth(path) != truth(paths[0])])
    return settled(session)


def test_the_log_gives_back_what_was_done(tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    log.ask([Question(1, ("a", "b", "c"), "why"), Question(2, ("d",))])
    log.act(Act(1, "x", "Ada", ("b",)))
    log.act(Act(2, "", "Ben"))
    log.edited({"e": "y"})
    expected = {path: Answer("x", "group", "Ada", "a") for path in "ac"} | {"d": Answer("", "photo", "Ben"), "e": Answer("y")}
    assert log.answers() == expected
    assert log.undo("Cyd") is None
    # Of each person the last act, whoever came after.
    assert log.undo("Ada") == Act(1, "x", "Ada", ("b",))
    again = AnswerLog(tmp_path / "a.jsonl")
    assert again.answers() == log.answers() == {path: expected[path] for path in ("d", "e")}
    assert [question.id for question in again.open()] == [1]
    assert again.questions == log.questions
    assert again.version == log.version


def test_a_line_that_a_crash_cut_short_was_never_confirmed(tmp_path):
    file = tmp_path / "a.jsonl"
    log = AnswerLog(file)
    log.ask([Question(1, ("a",))])
    log.act(Act(1, "x"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[-30:-1])
    again = AnswerLog(file)
    assert again.answers() == log.answers()
    again.undo("")
    assert len(file.read_text().splitlines()) == 3
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match="line 1, is damaged"):
        AnswerLog(file)


def test_the_model_knows_every_answer_and_asks_by_it(subject, tmp_path):
    with answering(subject, tmp_path / "hints.csv") as session:
        state = play(session, 8)
        labels, log = session.tutor.labels(), session.log
        rows = torch.tensor(sorted(subject.place[path] for path in labels))
        known = Known(rows, torch.tensor([NAMES.index(labels[subject.paths[i]]) for i in rows.tolist()]))
        torch.testing.assert_close(session.tutor.belief.p, subject.learner.posteriors(known, 3))
        assert state["known"] == state["acts"] == 8
        assert state["missing"] == [name for name in NAMES if name not in labels.values()]
        # The answers are the truth, and a model that knows them is nearly right.
        assert state["progress"]["low"] <= state["progress"]["estimate"] <= state["progress"]["high"]
        asked = list(log.questions.values())
        drawn = [question for question in asked if question.id % ONE_IN == 0]
        assert [len(question.paths) for question in drawn] == [1] * len(drawn)
        assert [subject.place[question.paths[0]] for question in drawn] == [
            row for row in subject.drawn if subject.paths[row] in {question.paths[0] for question in drawn}
        ]
        groups = [question for question in asked if question.grouped]
        assert groups
        assert all(4 <= len(question.paths) <= 12 and question.id % ONE_IN for question in groups)
        # Nothing is asked twice but what was taken out of a group.
        singles = [question.paths[0] for question in asked]
        assert len(set(singles)) == len(singles)


def test_a_group_is_as_many_hints(subject, tmp_path):
    hints = tmp_path / "hints.csv"
    with answering(subject, hints) as session:
        settled(session)
        look = session.look("a")
        session.skip("a", "Ada", look["id"])
        look = session.look("a")
        paths = [photo["path"] for photo in look["photos"]]
        assert len(paths) >= 4
        with pytest.raises(UserError, match="not all of them"):
            session.answer("a", "Ada", look["id"], "birch", paths)
        session.answer("a", "Ada", look["id"], "BIRCH", paths[1:3])
    lines = hints.read_text().splitlines()
    assert lines[0] == "path,label,source,by,group"
    assert lines[1:] == [f"{path},birch,group,Ada,{paths[0]}" for path in (paths[0], *paths[3:])]
    assert read_answers(hints) == dict.fromkeys((paths[0], *paths[3:]), "birch")


def test_a_killed_program_goes_on_where_it_was(subject, tmp_path):
    with answering(subject, tmp_path / "whole.csv") as session:
        play(session, 12)
    for part in (5, 7):
        with answering(subject, tmp_path / "parts.csv") as session:
            play(session, part)
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
    # Killed after the line was written and before the hints file was.
    log = AnswerLog(tmp_path / "parts.jsonl")
    log.act(Act(log.open()[0].id, "birch"))
    with answering(subject, tmp_path / "parts.csv") as session:
        settled(session)
        assert session.tutor.labels()[log.touched and next(iter(log.touched))] == "birch"
        assert not any(isinstance(act, dict) for act in session.log.acts)


def test_an_answer_that_the_disk_did_not_take_is_no_answer(subject, tmp_path, monkeypatch):
    """Neither now nor after a restart; an undo that it did not take is none either. What was confirmed stays."""
    hints = tmp_path / "hints.csv"
    with answering(subject, hints) as session:
        play(session, 3)
        kept, size, version = session.log.answers(), (tmp_path / "hints.jsonl").stat().st_size, session.log.version
        first = next(iter(kept))
        write, full = session_module.write_text, []

        def written(path, text):
            if full:
                raise UserError(f"cannot write {path}: No space left on device; free some space")
            write(path, text)

        monkeypatch.setattr(session_module, "write_text", written)
        session.again("tab", first)
        size, full = (tmp_path / "hints.jsonl").stat().st_size, full.append(1) or full
        look = session.look("tab")
        with pytest.raises(UserError, match="No space left"):
            session.answer("tab", "Ada", look["id"], next(name for name in NAMES if name != kept[first].label), [])
        with pytest.raises(UserError, match="No space left"):
            session.undo("tab", "Ada")
        assert session.log.answers() == kept
        assert (tmp_path / "hints.jsonl").stat().st_size == size
        # Pages that look whether something changed see that it did.
        assert session.log.version != version
        # The look is still theirs.
        assert session.look("tab")["id"] == look["id"]
    full.clear()
    with answering(subject, hints) as session:
        assert session.log.answers() == kept


def test_the_middle_of_a_group_that_was_odd_in_it_is_asked_alone(subject, tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    log.ask([Question(1, subject.paths[:12])])
    log.act(Act(1, "birch", odd=subject.paths[:1]))
    log.edited(dict.fromkeys(subject.paths[20:], "birch"))
    belief = Belief(2, NAMES, torch.full((len(TRUTH), 3), 1 / 3))
    found = by_worth(subject, log, belief, 10)
    first = [question for question in found if subject.paths[0] in question.paths]
    assert [question.id for question in found][:1] == [2]
    assert {path for question in found for path in question.paths} == {*subject.paths[:1], *subject.paths[12:20]}
    assert all(question.paths[0] != subject.paths[0] or question.paths == subject.paths[:1] for question in first)


def test_what_was_written_by_hand_counts_and_rows_of_others_stay(subject, tmp_path):
    hints = tmp_path / "hints.csv"
    hints.write_text("path,label\n003.png,birch\nelsewhere.png,larch\n")
    with answering(subject, hints) as session:
        play(session, 1)
        assert session.tutor.labels()["003.png"] == "birch"
    hints.write_text(hints.read_text().replace("003.png,birch", "003.png,beech tree"))
    with answering(subject, hints) as session:
        assert session.tutor.labels()["003.png"] == "beech tree"
        play(session, 1)
    found = read_answers(hints)
    assert found["003.png"] == "beech tree"
    assert found["elsewhere.png"] == "larch"


def test_a_file_of_somewhere_else_keeps_how_its_answers_were_given(subject, tmp_path):
    hints = tmp_path / "hints.csv"
    hints.write_text(
        "path,label,by,source,group\n003.png,birch,anna.csv;ben.csv,group,./004.png\n./004.png,birch,anna.csv,photo,\n005.png,birch,,,\n"
        "else.png,larch,cyd,group,\n"
    )
    expected = {"003.png": ("group", "anna.csv;ben.csv", "004.png"), "004.png": ("photo", "anna.csv", "")}
    expected |= {"005.png": ("file", "", ""), "else.png": ("group", "cyd", "")}
    for _ in range(2):
        with answering(subject, hints) as session:
            play(session, 1)
        found = how_given(hints)
        assert {path: found[path] for path in expected} == expected


def test_what_is_written_by_hand_while_the_page_is_open_is_kept(subject, tmp_path):
    hints = tmp_path / "hints.csv"

    def answer(session, act):
        look = session.look("tab")
        act("tab", "Ada", look["id"], *(["birch", [photo["path"] for photo in look["photos"][1:]]] if act == session.answer else []))
        return look["photos"][0]["path"]

    with answering(subject, hints) as session:
        settled(session)
        first = answer(session, session.answer)
        hints.write_text(
            hints.read_text().replace(f"{first},birch", f"{first},beech tree") + "200.png,oak?,,\n201.png,none,,\nelsewhere.png,larch,,\n"
        )
        second = answer(session, session.answer)
        expected = {first: "beech tree", second: "birch", "201.png": ""}
        assert session.tutor.labels() == expected
        assert read_answers(hints) == {**expected, "200.png": "oak?", "elsewhere.png": "larch"}
        with hints.open("a") as file:
            file.write("202.png,birch,,\n")
        session.undo("tab", "Ada")
        del expected[second]
        assert session.tutor.labels() == {**expected, "202.png": "birch"}
        # What is no hints file any more is not written over.
        hints.write_text("half of a line")
        with pytest.raises(UserError, match="not a hints file"):
            answer(session, session.skip)
        assert hints.read_text() == "half of a line"


@pytest.mark.parametrize("new_names", [False, True])
def test_none_in_a_file_is_no_class(subject, tmp_path, new_names):
    for name in ("hints", "listed"):
        rows = ["path,label,why,expected", "200.png,None of these,,birch", "201.png,birch,,birch", "202.png,,,birch"]
        (tmp_path / f"{name}.csv").write_text("\n".join([*rows, ""]))
    with answering(replace(subject, new_names=new_names), tmp_path / "hints.csv") as session:
        assert session.tutor.classes() == NAMES
        assert session.tutor.labels() == {"200.png": "", "201.png": "birch"}
    # Where the list has it, it is one.
    with answering(replace(subject, classes=("none of these", *NAMES[1:]), new_names=new_names), tmp_path / "listed.csv") as session:
        assert session.tutor.labels() == {"200.png": "none of these", "201.png": "birch"}


def test_two_people_get_different_looks_and_see_where_they_disagree(subject, tmp_path):
    with answering(subject, tmp_path / "hints.csv") as session:
        settled(session)
        first, second = session.look("a"), session.look("b")
        assert first["id"] != second["id"]
        # A reloaded page is the same page.
        assert session.look("a")["id"] == first["id"]
        path = first["photos"][0]["path"]
        session.answer("a", "Ada", first["id"], "birch", [photo["path"] for photo in first["photos"][1:]])
        session.again("b", path)
        look = session.look("b")
        assert [photo["path"] for photo in look["photos"]] == [path]
        assert look["said"] == [["Ada", "birch"]]
        session.answer("b", " Ben ", look["id"], "beech tree", [])
        state = settled(session)
        assert state["contradictions"] == [{"path": path, "said": [("Ada", "birch"), ("Ben", "beech tree")]}]
        assert session.tutor.labels()[path] == "beech tree"
        assert state["people"] == {"Ben": 1}
        # Each takes back their own.
        assert session.undo("a", "Ada")
        assert session.look("a")["id"] == first["id"]
        assert settled(session)["contradictions"] == []
        assert session.tutor.labels()[path] == "beech tree"
        assert not session.undo("a", "Cyd")


def test_what_was_taken_out_comes_back_with_its_own_group_alone(subject, tmp_path):
    """A tab and its copy answer the same look: taken back by one it is still answered, and another look is given."""
    with answering(subject, tmp_path / "hints.csv") as session:
        first = session.look("a")
        out = [photo["path"] for photo in first["photos"][1:]]
        assert out
        session.answer("a", "Ada", first["id"], "birch", out)
        back = _undo(session, {"tab": "a", "who": "Ada"})
        assert (back["look"]["id"], back["odd"]) == (first["id"], out)
        session.answer("a", "Ada", first["id"], "birch", out)
        session.answer("a", "Ben", first["id"], "birch", [])
        back = _undo(session, {"tab": "a", "who": "Ada"})
        assert back["undone"]
        assert back["look"]["id"] != first["id"]
        assert back["odd"] == []


def test_a_photograph_of_a_group_that_is_gone_is_neither_shown_nor_named(subject, tmp_path):
    """The bars of the others stay theirs."""
    hints, missing = tmp_path / "hints.csv", "gone.png"
    AnswerLog(tmp_path / "hints.jsonl").ask([Question(1, (subject.paths[0], missing, *subject.paths[1:4]))])
    with answering(subject, hints) as session:
        settled(session)
        look = session.look("tab")
        assert [photo["path"] for photo in look["photos"]] == list(subject.paths[:4])
        p = session.tutor.belief.p
        for name, bars in look["choices"]:
            assert bars == [float(p[row, NAMES.index(name)]) for row in range(4)]
        assert len(session.large(1)) == 4
        with pytest.raises(UserError, match="not all of them"):
            session.answer("tab", "Ada", 1, "birch", list(subject.paths[:4]))
        session.answer("tab", "Ada", 1, "birch", [subject.paths[2]])
        assert list(session.tutor.labels()) == [subject.paths[i] for i in (0, 1, 3)]
        back = _undo(session, {"tab": "tab", "who": "Ada"})
        assert (back["look"]["id"], back["odd"]) == (1, [subject.paths[2]])


def test_who_names_one_of_a_group_again_alone_makes_no_test_of_it(subject, tmp_path):
    hints = tmp_path / "hints.csv"
    with answering(subject, hints) as session:
        settled(session)
        look = session.look("tab")
        paths = [photo["path"] for photo in look["photos"]]
        session.answer("tab", "Ada", look["id"], "birch", [])
        for path in paths[:2]:
            session.again("tab", path)
            session.answer("tab", "Ben", session.look("tab")["id"], "beech tree", [])
    told = how_given(hints)
    assert {path: told[path] for path in paths[:3]} == {
        **dict.fromkeys(paths[:2], ("photo", "Ben", paths[0])),
        paths[2]: ("group", "Ada", paths[0]),
    }
    assert [path for path in paths if told[path].tests(path)] == paths[:1]


def test_a_log_of_before_goes_on(subject, tmp_path):
    """It said with each question what the model of the moment guessed."""
    entry = {"id": 1, "paths": ["000.png"], "why": "", "speaks_for": 2.0, "guess": "birch", "learnt": 3}
    rows = {"event": "file", "rows": {"001.png": "birch"}, "told": {"001.png": ["group", "Ada"]}}
    act = {"event": "act", "question": 1, "label": "birch", "who": "Ada", "odd": []}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ({"event": "ask", "questions": [entry]}, rows, act)))
    assert AnswerLog(tmp_path / "a.jsonl").answers() == {"001.png": Answer("birch", "group", "Ada"), "000.png": Answer("birch", "photo", "Ada")}


def test_no_more_looks_are_promised_than_there_can_be(subject, tmp_path):
    few = tuple(Look(PredictionRow(path), "") for path in subject.paths[:12])
    given = dict.fromkeys(subject.paths[:2], "birch")
    with answering(replace(subject, given=given), tmp_path / "hints.csv", goal=200, plan=InOrder(few)) as session:
        state = settled(session)
        assert (state["goal"], state["certain"], state["more"], state["unnamed"]) == (10, True, 2, None)
        state = play(session, 10)
        assert (state["goal"], state["more"], state["remaining"]) == (10, 0, 0)
        assert session.look("tab") is None
    with answering(subject, tmp_path / "worth.csv", goal=2000) as session:
        assert settled(session)["goal"] <= len(TRUTH)
        # What was named as a group is no look of its own.
        assert play(session, 4)["goal"] < len(TRUTH) - 4


def test_the_number_of_looks_never_grows_and_more_are_offered_where_something_is_left(subject, tmp_path):
    """Groups take photographs up and give odd ones back: "look 1 of 6" became "look 2 of 10"."""
    small = few_of(subject, 60)
    with answering(small, tmp_path / "hints.csv", goal=20) as session:
        told = [settled(session)]
        assert told[0]["goal"] == 20
        assert not told[0]["certain"]
        while session.look("tab") is not None:
            told.append(play(session, 1))
            assert told[-1]["more"] == 0 or told[-1]["remaining"] > 0
        goals = [state["goal"] for state in told]
        assert goals == sorted(goals, reverse=True)
        assert goals[-1] == told[-1]["looks"]
        assert told[-1]["answered"] == 60
        # Nothing is left, and nothing is offered.
        assert (told[-1]["more"], told[-1]["remaining"]) == (0, 0)
    with answering(subject, tmp_path / "large.csv", goal=10) as session:
        state = settled(session)
        assert (state["goal"], state["certain"], state["more"]) == (10, True, 10)


def test_open_questions_of_other_photographs_hold_up_nothing(subject, tmp_path):
    AnswerLog(tmp_path / "hints.jsonl").ask([Question(number, (f"elsewhere{number}.png",)) for number in range(1, 9)])
    with answering(subject, tmp_path / "hints.csv") as session:
        settled(session)
        assert session.look("tab")["photos"][0]["path"] in subject.place


def test_what_may_be_suggested_follows_what_is_taken_out(subject, tmp_path):
    """A page gets every class that is the likeliest for some part of the group, beside those that it shows."""
    generator = torch.Generator().manual_seed(0)
    with answering(subject, tmp_path / "hints.csv") as session:
        settled(session)
        look = session.look("tab")
        assert look["middle"] == 0
        assert look["photos"][0]["path"] == session.log.questions[look["id"]].paths[0]
        p = (3 * torch.randn(6, 40, generator=generator)).softmax(1)
        belief = Belief(1, tuple(f"c{i}" for i in range(40)), p)
        rows = [0, 2, 3, 5]
        shown = belief.likeliest(rows, 2, 2)
        sent = dict([*shown, *belief.likeliest_of_some(rows, [name for name, _ in shown])])
        for part in range(1, 2 ** len(rows)):
            left = [i for i in range(len(rows)) if part >> i & 1]
            truly = int(p[[rows[i] for i in left]].mean(0).argmax())
            assert max(sent, key=lambda name: sum(sent[name][i] for i in left)) == f"c{truly}"
        assert len(sent) < 40


def test_a_look_is_kept_for_a_page_that_is_open_and_for_no_other(subject, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(session_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with answering(subject, tmp_path / "hints.csv", goal=2) as session:
        settled(session)
        first, second = session.look("closed"), session.look("open")
        # Both looks are before somebody: that is not the end.
        assert session.look("new") is None
        assert session.state()["open"] == 2
        for _ in range(4):
            now[0] += 20
            # A page that is open asks for news.
            session.wait("open", "", 0)
            session.wait("new", "", 0)
        assert session.look("new")["id"] == first["id"]
        assert session.look("open")["id"] == second["id"]
        session.skip("new", "", first["id"])
        assert session.look("new") is None
        session.skip("open", "", second["id"])
        assert session.state()["open"] == 0


def test_the_goal_ends_the_looks_and_may_be_raised(subject, tmp_path):
    with answering(subject, tmp_path / "hints.csv", goal=2) as session:
        state = play(session, 2)
        assert session.look("tab") is None
        assert (state["looks"], state["goal"], state["busy"]) == (2, 2, False)
        session.go_on(10)
        settled(session)
        assert session.look("tab") is not None


def test_copies_of_an_answered_photograph_are_not_asked(subject, tmp_path):
    copies = replace(subject, ids=("same",) * len(TRUTH))
    with answering(copies, tmp_path / "hints.csv") as session:
        play(session, 1)
        # Copies are no question, and then there is nothing left.
        assert session.look("tab") is None


def test_copies_that_were_answered_differently_are_shown(subject, tmp_path):
    alike = ("200.png", "201.png", "202.png")
    ids = tuple("same" if path in alike else content for path, content in zip(subject.paths, subject.ids, strict=True))
    copies = replace(subject, ids=ids)
    (tmp_path / "hints.csv").write_text("path,label\n200.png,birch\n201.png,\n203.png,birch\n")
    with answering(copies, tmp_path / "hints.csv") as session:
        assert settled(session)["contradictions"] == [{"path": "200.png", "said": [("200.png", "birch"), ("201.png", "")]}]


def test_names_are_made_up_where_there_are_none(subject, tmp_path):
    bare = replace(subject, classes=(), learner=Learner([torch.as_tensor(cloud(SIZES)[0]).float()], None), new_names=True)
    with answering(bare, tmp_path / "hints.csv") as session:
        settled(session)
        look = session.look("tab")
        assert look["choices"] == []
        for wrong in ("\x07", "x" * 500):
            with pytest.raises(UserError):
                session.answer("tab", "", look["id"], wrong, [])
        session.answer("tab", "", look["id"], "oak", [])
        settled(session)
        look = session.look("tab")
        assert [name for name, _ in look["choices"]] == ["oak"]
        # The same name in another spelling is the same class.
        session.answer("tab", "", look["id"], "OAK", [])
        settled(session)
        session.answer("tab", "", session.look("tab")["id"], "birch", [])
        state = settled(session)
        assert state["new"] == ["oak", "birch"]
        assert 0 <= state["unnamed"] <= 1
        assert {name for name, _ in session.look("tab")["choices"]} == {"oak", "birch"}
    with answering(subject, tmp_path / "strict.csv") as session, pytest.raises(UserError, match="no class"):
        session.answer("tab", "", session.look("tab")["id"], "larch", [])


def test_photographs_without_a_class_list(tmp_path):
    x = cloud(SIZES)[0]
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match="--ask N and --hints"):
        api.review_server(tmp_path / "x.npy", order=api.WORTH, console=QUIET)
    hints = tmp_path / "hints.csv"
    with api.review_server(tmp_path / "x.npy", hints, limit=5, order=api.WORTH, console=QUIET) as server:
        session = server.session
        assert session.subject.classes == ()
        look = session.look("tab")
        session.answer("tab", "", look["id"], "a new name", [])
        settled(session)
        assert "--hints" in session.subject.command
        assert "type what it is" in server.page.decode()
    rows = read_answers(hints)
    assert rows == dict.fromkeys((photo["path"] for photo in look["photos"]), "a new name")
    # What the page writes is what adapt reads.
    assert with_new_names(hints, []) == ["a new name"]


def test_an_answer_waits_for_no_lesson_and_the_newest_count(subject, tmp_path, monkeypatch):
    with answering(subject, tmp_path / "hints.csv") as session:
        settled(session)
        go, begun, lessons = threading.Event(), threading.Event(), []

        def slow(learner, known, classes):
            lessons.append(len(known))
            begun.set()
            assert go.wait(60)
            return torch.full((len(TRUTH), classes), 1 / classes)

        monkeypatch.setattr(Learner, "posteriors", slow)
        for _ in range(4):
            look = session.look("tab")
            session.answer("tab", "", look["id"], "birch", [photo["path"] for photo in look["photos"][1:]])
            assert begun.wait(60)
        assert session.state()["busy"]
        assert len(read_answers(tmp_path / "hints.csv")) == 4
        go.set()
        assert settled(session)["known"] == 4
        # One lesson about the first answer, and one about all: those between were never begun.
        assert lessons == [1, 4]


def test_a_lesson_that_fails_loses_no_answer(subject, tmp_path, monkeypatch):
    with answering(subject, tmp_path / "hints.csv") as session:
        settled(session)
        monkeypatch.setattr(Learner, "posteriors", lambda *_: 1 / 0)
        look = session.look("tab")
        session.answer("tab", "", look["id"], "birch", [])
        assert "division" in settled(session)["error"]
        assert read_answers(tmp_path / "hints.csv")
