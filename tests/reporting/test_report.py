"""The report of a run: one page, complete in itself, whatever the files and classes are called."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

import finelens
from finelens import api
from finelens.errors import UserError
from finelens.evaluation.answered import Answered
from finelens.evaluation.verdict import Reason, Verdict
from finelens.methods.registry import METHODS
from finelens.reporting import page as page_module
from finelens.reporting.card import page_of, plain
from finelens.reporting.page import script_json
from finelens.reporting.record import RunRecord, read_run
from finelens.reporting.sections import classes, first
from finelens.reporting.thumbnails import Thumbnails
from finelens.reporting.write import report_html
from finelens.runs.folder import RunFolder
from tests.reporting.conftest import FILES, HOSTILE, make_run
from tests.reporting.html import Page
from tests.toy import CLASSES, QUIET, events


def read(run) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def copied(run, target):
    """The run in a folder of its own, to be spoiled."""
    return shutil.copytree(run, target / "run")


@pytest.mark.parametrize("which", ["plain_run", "hostile_run", "trained_run"])
def test_page_is_whole_accessible_and_fetches_nothing(which, request):
    page = read(request.getfixturevalue(which))
    assert page.open == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("nav") == 1
    assert page.all("html")[0]["lang"] == "en"
    for image in page.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/")
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg["aria-label"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"][0] == "#"
        assert link["href"][1:] in ids
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert tag not in ("link", "iframe", "object", "form", "base")
        for name in ("href", "src"):
            assert not re.match(r"\s*(https?:|//|javascript:)", attributes.get(name) or "")


def test_headings_never_skip_a_level(plain_run):
    levels = [int(tag[1]) for tag, _ in read(plain_run).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_policy_lets_only_the_own_script_and_style_through(plain_run):
    text = (plain_run / "report.html").read_text(encoding="utf-8")
    policy = next(meta["content"] for meta in Page(text).all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for kind, source in (("style-src", re.search(r"<style>(.*?)</style>", text, re.S)[1]), ("script-src", Page(text).scripts[None])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_hostile_names_are_text(hostile_run):
    page = read(hostile_run)
    assert [script.get("id") for script in page.all("script")] == ["table-data", "map-data", None]
    assert all(not image["src"].startswith("x") for image in page.all("img"))
    data = json.loads(page.scripts["table-data"])
    assert data["classes"] == list(HOSTILE)
    assert {row[0].split("/")[0] for row in data["rows"]} == {*FILES, "broken.jpg", "copy.png"}
    shown = page.text
    assert HOSTILE[0] in shown
    assert "{{ 7 * 7 }}" in shown


def test_script_json_cannot_end_its_element():
    text = str(script_json({"</script>": "<!-- & \u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028"}


def test_every_template_escapes():
    env = page_module.environment()
    assert env.autoescape is True
    assert env.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_every_head_of_a_table_has_a_name():
    for source in files("finelens.reporting").joinpath("templates").iterdir():
        assert not re.search(r"<th[^>]*></th>", source.read_text("utf-8")), source.name


def test_content_of_a_run(plain_run):
    text = read(plain_run).text
    for part in (
        "judged without labels",
        "26 files, 25 ok, 1 corrupt",
        "1 exact copy of other files",
        "(templates) stand in",
        "Classes that are probably",
        "What varies here",
        # The first screen: what, how sure, what next, and words that need explaining explained.
        "photos: 25 photographs in 4 classes",
        "What is in the folder",
        "How sure it is",
        "All in all about",
        "right by its own probabilities",
        ", an estimate.",
        f"finelens review {plain_run} --ask 10 --serve",
        f"--hints {plain_run}/hints.csv",
        f"finelens report {plain_run} --labels labels.csv",
        "Researchers say zero-shot",
    ):
        assert part in text
    assert "training needs" not in text
    assert "from knowing nothing" not in text.split("More figures")[0]
    assert next(attributes["id"] for tag, attributes in read(plain_run).elements if tag == "section" and "id" in attributes) == "classes"
    assert "Accuracy, with labels" not in text
    rows = json.loads(read(plain_run).scripts["table-data"])["rows"]
    assert len(rows) == 26
    assert [row[1] for row in rows if row[0] == "broken.jpg"] == [-1]


def test_training_curves(trained_run, plain_run):
    assert "Stability of the pseudo-labels" not in read(plain_run).text
    text = read(trained_run).text
    for heading in ("Loss", "Confidence of the pseudo-labels"):
        assert heading in text
    assert len([event for event in events(trained_run) if event["event"] == "epoch"]) == 2


def test_photographs_that_are_gone_leave_a_report_without_pictures(plain_run, tmp_path):
    run = copied(plain_run, tmp_path)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "photos": str(tmp_path / "gone")}))
    assert finelens.report(run, console=QUIET) == run / "report.html"
    page = read(run)
    assert page.all("img") == []
    assert "no picture" in page.text


def test_labels_add_the_measured_part(plain_run, tmp_path):
    run = copied(plain_run, tmp_path)
    photos = json.loads((run / "config.json").read_text())["photos"]
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{name}/{i}.png,{name}\n" for name in CLASSES for i in range(6)))
    api.report(run, labels=labels, console=QUIET)
    text = read(run).text
    for part in ("Accuracy, with labels", "said without labels", "95 % interval", "Confusion matrix", "Each class"):
        assert part in text
    measured = json.loads((run / "evaluation.json").read_text())
    assert sum(count for _, _, count in measured["confusion"]) == sum(entry["n"] for entry in measured["reliability"]) == measured["n"] == 24
    assert f"{measured['accuracy']:.1%}" in (run / "MODEL_CARD.md").read_text()
    judged = json.loads((run / "verdict.json").read_text())
    assert judged["measured"] is True
    assert judged["evaluation"]["n"] == 24
    assert (judged["verdict"] == "improved") == (measured["difference_interval"][0] > 0)
    assert f"Measured on 24 labelled photographs: {measured['accuracy']:.1%} right" in text
    # Labels are more than a second opinion, and what was estimated before is folded away.
    assert "no second opinion" in read(plain_run).text
    assert "no second opinion" not in text
    before, folded = text.split("What was said without labels")
    assert "right by its own probabilities" not in before
    assert "right by its own probabilities" in folded
    assert "**Health, measured with labels:**" in (run / "MODEL_CARD.md").read_text()
    with pytest.raises(UserError, match="--labels"):
        api.report(run, test=photos, console=QUIET)


def test_a_report_that_fails_does_not_lose_the_run(tmp_path, tiny_vit, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("no pen")

    with monkeypatch.context() as patch:
        patch.setattr("finelens.reporting.write.report_html", fail)
        run = make_run(tmp_path, tiny_vit)
    assert "no pen" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    assert events(run)[-1]["event"] == "end"
    finelens.report(run, console=QUIET)
    assert (run / "report.html").exists()


@pytest.mark.parametrize("backbone", ["embedded", "open_clip:ViT-B-32/openai"])
def test_the_small_model_is_called_small(plain_run, backbone):
    record = read_run(RunFolder.open(plain_run, lock=False))
    page = report_html(replace(record, config=replace(record.config, backbone=backbone)), Thumbnails(lambda name: None))
    assert ("for real work try" in page) == (backbone == "embedded")


def test_answers_are_the_estimate_that_is_said_first(plain_run):
    record = read_run(RunFolder.open(plain_run, lock=False))
    answered = {"event": "predictions", "answered": asdict(Answered(8, 0, (), 2, "zero-shot", estimate=0.75, low=0.6, high=0.9))}
    found = first.build(replace(record, events=(*record.events, answered)))
    assert found["estimate"] == "about 75% right by the answers of a person (90 % interval 60% to 90%)"
    assert found["estimates"][0] == record.estimates.line(record.measured.signals.none_of_these)
    assert not any("answers" in estimate for estimate in found["estimates"])


@pytest.mark.parametrize(("gain", "shown"), [(0.3, False), (0.0, True)])
def test_what_the_answers_say_is_said_once(plain_run, gain, shown):
    told = Answered(8, 0, (), 2, "zero-shot", estimate=0.75, low=0.6, high=0.9, gain=gain, gain_low=gain - 0.1, gain_high=gain + 0.1)
    record = read_run(RunFolder.open(plain_run, lock=False))
    record = replace(record, events=(*record.events, {"event": "predictions", "answered": asdict(told)}))
    # Where they decide, the sentence of the verdict says it; else it is a reason.
    assert any(reason.code == "answers" for reason in first.build(record)["reasons"]) == shown
    assert ("By the answers of a person" in record.verdict.sentence) != shown


def test_a_class_of_strangers_has_no_typical_photograph(plain_run, monkeypatch):
    record = read_run(RunFolder.open(plain_run, lock=False))
    stranger = record.predicted[0].label
    rows = [replace(row, none_of_these=0.9 if row.label == stranger else 0.1) for row in record.predicted]
    monkeypatch.setattr(RunRecord, "predicted", rows)
    entries = {entry["name"]: entry for entry in classes.build(record, Thumbnails(lambda name: None))["entries"]}
    assert entries[stranger]["representative"] == []
    assert entries[stranger]["strange"] == entries[stranger]["count"]
    assert all(entry["representative"] and not entry["strange"] for name, entry in entries.items() if name != stranger)
    assert "probably belong to none of the classes.</p></div>" in report_html(record, Thumbnails(lambda name: None))


@pytest.mark.parametrize(("shown", "badge"), [("answers", "Improved"), ("labels", "Improved"), ("", "Probably improved")])
def test_what_signs_alone_say_is_probable(plain_run, monkeypatch, shown, badge):
    record = read_run(RunFolder.open(plain_run, lock=False))
    code = "answers" if shown == "answers" else "kept"
    found = Verdict("improved", "Better.", (Reason("good", "Because.", code),), measured=shown == "labels")
    monkeypatch.setattr(RunRecord, "verdict", found)
    assert first.build(record)["badge"] == badge


def test_runs_without_what_a_report_needs_are_refused(plain_run, tmp_path):
    run = copied(plain_run, tmp_path)
    (run / "signals.json").unlink()
    with pytest.raises(UserError, match=r"signals\.json does not exist"):
        api.report(run, console=QUIET)
    (run / "signals.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="not the signals"):
        api.report(run, console=QUIET)
    with pytest.raises(UserError, match="not the folder of a finelens run"):
        api.report(tmp_path, console=QUIET)


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_every_method_has_the_page_that_cards_name(name):
    text = (Path(__file__).parents[2] / page_of(name)).read_text()
    for part in ("## The idea", "## Equations", "## Options", "## Cost", "## When not to use it"):
        assert part in text, part


def test_card_says_what_the_model_is(plain_run, hostile_run):
    card = (plain_run / "MODEL_CARD.md").read_text()
    for part in ("docs/methods/stata.md", "SHA-256", "Intended use", "Limits", "Nothing: no labels were given", *CLASSES):
        assert part in card
    assert "**Health, judged without labels:**" in card
    assert "The column `none_of_these`" in card
    assert "always answers" not in card
    hostile = (hostile_run / "MODEL_CARD.md").read_text()
    assert "<script>" not in hostile
    assert plain("<b>*x*\n# y") == "&lt;b&gt;\\*x\\* \\# y"
