"""From photographs without a class list to a run: questions, names that a person makes up, and the list that follows from them."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import finelens
from finelens import api
from finelens.cli import main
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.reporting.record import read_run
from finelens.reporting.review.start import adapt_command
from finelens.runs.classifier import load_run
from finelens.runs.folder import RunFolder
from tests.solvers.data import cloud
from tests.toy import CLASSES, QUIET, options_for, write_photos


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_names_a_folder_that_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert adapt_command("photos", "hq.csv", "embedded") == "finelens adapt photos --hints hq.csv --out run"
    (tmp_path / "run").mkdir()
    assert adapt_command("photos", "hq.csv", "embedded") == "finelens adapt photos --hints hq.csv --out run-2"


def fill(path):
    """The person: names each photograph that is asked about by its folder."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace(",?,", f",{line.split('/')[0]},") for line in lines) + "\n")


def test_names_make_the_list(tiny_vit, tmp_path, capsys):
    photos, sheet = write_photos(tmp_path / "photos"), tmp_path / "answers.csv"
    backbone = f"local:{tiny_vit}"
    with pytest.raises(SystemExit) as ended:
        main(["review", str(photos), "--ask", "8", "--csv", str(sheet), "--backbone", backbone])
    assert ended.value.code == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"finelens adapt {photos} --hints {sheet} --backbone {backbone} --out run"
    rows = rows_of(sheet)
    assert [row["label"] for row in rows] == ["?"] * 8
    # Every kind is among them, though nobody said how many there are.
    assert {row["path"].split("/")[0] for row in rows} == set(CLASSES)
    fill(sheet)
    more = finelens.ask(photos, 3, csv=sheet, backbone=backbone, console=QUIET)
    after = rows_of(sheet)
    assert [row["path"] for row in after[:8]] == [row["path"] for row in rows]
    assert not {look.path for look in more} & {row["path"] for row in rows}
    # The questions that are still open are passed over.
    capsys.readouterr()
    found = api.adapt(photos, None, tmp_path / "run", hints=sheet, backbone=backbone, options=options_for("consensus"), console=Console())
    assert "from the hints are the list" in capsys.readouterr().err
    assert load_run(tmp_path / "run").classes == sorted(CLASSES)
    assert np.mean([row.label == row.path.split("/")[0] for row in found.rows]) > 0.9
    assert sum(row.answered == "yes" for row in found.rows) == 8
    # Questions and the run's own account draw from the same random order.
    answered = read_run(RunFolder.open(tmp_path / "run", lock=False)).answered
    assert answered.drawn >= 1
    # The answers are the list: classes that nobody named are missing.
    once = [name for name in CLASSES if [row["label"] for row in rows_of(sheet)].count(name) == 1]
    assert answered.unnamed == pytest.approx(len(once) / 8, abs=1e-4)


def test_features_are_asked_about_as_well():
    x, _, y = cloud([20, 15, 12])
    found = finelens.ask(x, 6, console=QUIET)
    assert len({look.path for look in found}) == 6
    assert {y[int(look.path.strip("[]"))] for look in found} == {0, 1, 2}
    assert all(look.expected == "" for look in found)
    assert [look.path for look in finelens.ask(x, 6, console=QUIET)] == [look.path for look in found]
    with pytest.raises(UserError, match="in the order worth"):
        finelens.ask(x, 6, order="doubt", console=QUIET)


def test_without_list_and_names_there_is_nothing_to_adapt_to(tmp_path):
    photos = write_photos(tmp_path / "photos", CLASSES[:1], per_class=2)
    with pytest.raises(UserError, match="no class list: give --classes"):
        api.adapt(photos, None, tmp_path / "run", console=QUIET)
    hints = tmp_path / "hints.csv"
    hints.write_text(f"path,label\n{CLASSES[0]}/0.png,none\n")
    with pytest.raises(UserError, match="names no class"):
        api.adapt(photos, None, tmp_path / "run", hints=hints, console=QUIET)
