"""The documentation: its site names every page, and the commands of README and guides are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from scripts.api_page import PAGE, page

from finelens.cli import cli
from finelens.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHOWN = [
    ROOT / "README.md",
    DOCS / "index.md",
    *sorted((DOCS / "guides").glob("*.md")),
    DOCS / "command.md",
    DOCS / "using.md",
    DOCS / "adding_a_method.md",
]


def test_the_site_names_every_page():
    named = re.findall(r"^\s+- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_page_on_python_is_that_of_the_docstrings():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python scripts/api_page.py"


def commands(path: Path) -> list[list[str]]:
    """Words of each command of finelens in the shell blocks of a page."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        for line in block.splitlines():
            if match := re.search(r"(?:^|\| |&& )finelens (.*)", line.strip()):
                words = shlex.split(match.group(1), comments=True)
                found.append(words[: min((i for i, word in enumerate(words) if word in (">", "|", "&&")), default=len(words))])
    return found


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)
def test_what_a_page_shows_can_be_typed(path):
    shown = commands(path)
    assert shown
    for words in shown:
        command: click.Command = cli
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        # The file of an example is not there.
        words = [word for i, word in enumerate(words) if word != "--config" and words[max(0, i - 1)] != "--config"]
        if command.name == "adapt" and not any(word == "PHOTOS" or "." in word for word in words):
            words = ["PHOTOS", *words]
        # Options, their values and the number of arguments; nothing is run.
        assert command is not cli, words
        command.make_context("finelens", list(words)).close()


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path):
    mkdocs = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    # Strict: a link or an anchor that leads nowhere is an error.
    mkdocs.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "methods" / "index.html").is_file()


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_list_of_systems_is_whole_and_names_methods_that_are_there():
    text = (DOCS / "systems.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 43))
    names = {method.name for method in METHODS}
    assert names <= set(re.findall(r"`([a-z0-9-]+)`", text)), "a method that the page does not name"
    # A system that is a method has a number or a reason, and a page of that method.
    for row in rows:
        if row[4] == "method":
            named = set(re.findall(r"\[`([a-z0-9-]+)`\]\(methods/", row[3]))
            assert named
            assert named <= names
            assert row[5] != "-"
