"""Printing the report, with a program in the place of the browser."""

from __future__ import annotations

import stat

import pytest

from finelens.errors import UserError
from finelens.reporting.pdf import find_browser, print_pdf

PRINTS = '#!/bin/sh\nfor word; do case "$word" in --print-to-pdf=*) printf "%%PDF-1.4 %s" "$*" > "${word#--print-to-pdf=}";; esac; done\n'


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a program and puts it where a browser would be."""

    def write(text):
        path = tmp_path / "bin" / "chromium"
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("FINELENS_BROWSER", str(path))
        return str(path)

    return write


def test_the_browser_prints_our_page_with_a_profile_of_its_own(program, tmp_path):
    browser = program(PRINTS)
    assert find_browser() == browser
    page = tmp_path / "a b.html"
    page.write_text("page")
    said = print_pdf(page, tmp_path / "out.pdf", browser).read_text()
    assert said.endswith(page.as_uri())
    assert "a%20b.html" in said
    assert "--headless" in said
    assert "--user-data-dir=" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.html", "bin", "out.pdf"]


def test_a_browser_that_prints_nothing_is_said_and_the_old_file_stays(program, tmp_path):
    browser = program("#!/bin/sh\nexit 3\n")
    (tmp_path / "out.pdf").write_text("old")
    with pytest.raises(UserError, match="ended with 3 and printed nothing; open"):
        print_pdf(tmp_path / "page.html", tmp_path / "out.pdf", browser)
    assert (tmp_path / "out.pdf").read_text() == "old"


def test_without_a_browser_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("FINELENS_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("finelens.reporting.pdf.APPLICATIONS", ())
    with pytest.raises(UserError, match="none is on PATH; install one, name one with the variable FINELENS_BROWSER"):
        find_browser()
    monkeypatch.setenv("FINELENS_BROWSER", "no-such-thing")
    with pytest.raises(UserError, match="FINELENS_BROWSER names no-such-thing"):
        find_browser()
