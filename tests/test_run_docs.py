"""``scripts/run_docs.py``: what pages show can be run on the demonstration, or there is a reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.core import ParameterSource
from scripts import run_docs
from scripts.run_docs import CACHE, MADE, SKIPPED, Shown, make_world, pages, ran, shown_on

from finelens.cli import cli

EVERY = [shown for page in pages() for shown in shown_on(page)]


def test_commands_are_found_on_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(run_docs, "ROOT", tmp_path)
    page = tmp_path / "docs" / "a" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(
        "`finelens no`\n```sh\nfinelens adapt PHOTOS \\\n    --out run   # a word\npip install x && finelens methods\n```\n"
        "```python\nfinelens no\n```\n"
        "```\ncat names | finelens predict run - --csv new.csv\nfinelens config run > ~/run.toml\nsudo finelens no\n```\n"
    )
    assert list(shown_on(page)) == [
        Shown("a/page.md", ("adapt", "PHOTOS", "--out", "run")),
        Shown("a/page.md", ("methods",)),
        Shown("a/page.md", ("predict", "run", "-", "--csv", "new.csv"), given="names"),
        Shown("a/page.md", ("config", "run"), kept="~/run.toml"),
    ]


def read_by(shown: Shown) -> set[str]:
    """Files and folders that a command is given."""
    words, command = list(shown.words), cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    configs = [words.pop(words.index("--config") + 1) for _ in range(words.count("--config"))]
    words = [word for word in words if word not in ("--config", "--list")]
    if "--list" in shown.words:
        return {words[0]}
    if configs and words[:1] != ["PHOTOS"]:
        words = ["PHOTOS", *words]
    context = command.make_context("finelens", words)
    found = {*configs, *([shown.given] if shown.given else [])}
    for param in command.params:
        value = context.params.get(param.name)
        if context.get_parameter_source(param.name) is ParameterSource.DEFAULT:
            continue
        if isinstance(param.type, click.Path) or param.name in ("extra", "labels", "data"):
            found |= {str(one) for one in (value if isinstance(value, tuple) else (value,)) if one is not None}
    context.close()
    return found - set(shown.writes()) - {"-", "folders"}


def test_every_command_can_run_or_has_a_reason():
    assert len(EVERY) > 150
    written: dict[str, set[str]] = {}
    for shown in EVERY:
        before = written.setdefault(shown.page, set())
        if shown.reason is None:
            missing = {name for name in read_by(shown) if name.split("/")[0] not in MADE | before}
            assert not missing, f"{shown.text}: nothing makes {sorted(missing)}"
            before |= set(shown.writes())
    assert sum(shown.reason is None for shown in EVERY) > 60


def test_every_reason_is_needed():
    used = {next(pattern for pattern, _ in SKIPPED if re.search(pattern, shown.text)) for shown in EVERY if shown.reason}
    assert [pattern for pattern, _ in SKIPPED if pattern not in used] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[Path]:
    """All that pages name."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        make_world(folder, 12)
        yield folder


# README's "predict run NEW --csv new.csv" is run by make_world.
QUICK = (
    "README.md: write run --to folders --out sorted",
    "using.md: predict run - --csv new.csv",
    "using.md: evaluate run TEST --labels folders",
    "command.md: config RUN",
    "benchmark.md: bench compare gda-em zero-shot --results results.jsonl",
)


def test_some_of_them_run(world):
    assert {path.name for path in world.iterdir()} >= MADE
    chosen = [shown for shown in EVERY if shown.text in QUICK]
    assert len({shown.text for shown in chosen}) == len(QUICK)
    assert [(shown.text, problem) for shown in chosen if (problem := ran(shown, world))] == []
    assert (world / "new.csv").read_text().count("\n") == 1 + 3
    assert sum(path.is_file() for path in (world / "sorted").rglob("*.jpg")) == 12
    assert "finelens" in (world / "run.toml").read_text() or (world / "run.toml").stat().st_size


def test_a_command_that_fails_says_why(world):
    assert ran(Shown("", ("predict", "run", "NOWHERE", "--csv", "x.csv")), world).startswith("code 2: finelens: ")
    assert ran(Shown("", ("predict", "run", "NEW", "--csv", "x.csv")), world, 0.01) == "took more than 0.01 s"
