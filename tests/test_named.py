"""What README and docs name is there: verbs, options, scripts and their options, files, options of a run, names of the package."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from scripts.run_docs import ROOT, pages

from finelens.cli import cli
from finelens.images.view_config import ViewConfig
from finelens.methods.option_types import option_types
from finelens.runs.config import TextConfig
from finelens.training.config import TrainingConfig
from finelens.training.stage_config import StageConfig

PAGES = [*pages(), ROOT / "CONTRIBUTING.md"]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Options that the command passes to other programs, or that their pages speak of: open_clip, pip, torchrun.
OTHERS = {"--force-quick-gelu", "--index-url", "--no-deps", "--nproc-per-node"}
SECTIONS = {
    **{
        name: {field.name for field in fields(config)}
        for name, config in {"training": TrainingConfig, "views": ViewConfig, "text": TextConfig, "stage": StageConfig}.items()
    },
    "method": {name for options in option_types().values() for name in options},
}
SOURCES = [path.read_text(encoding="utf-8") for folder in ("src", "scripts", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
# Placeholders, options of the method that a page writes, and ends of files called results/training.jsonl.
NO_OPTIONS = {"method.key", "training.key", "views.x", "method.weight", "training.jsonl", "views.jsonl", "views.py"}


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The verb that words begin with, and the words behind it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options_of(command: click.Command) -> set[str]:
    return {"--help", *(option for param in command.params for option in (*param.opts, *param.secondary_opts))}


def every_option(command: click.Command = cli) -> set[str]:
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return options_of(command).union(*map(every_option, below))


def script_text(path: Path) -> str:
    """A script, and those beside it that it imports: one of them may read its options."""
    text = path.read_text(encoding="utf-8")
    beside = (path.with_name(f"{name}.py") for name in re.findall(r"^(?:from|import) (\w+)", text, re.M))
    return text + "".join(other.read_text(encoding="utf-8") for other in beside if other.is_file())


def in_code(path: Path) -> tuple[list[str], list[str]]:
    """What a page sets as code: in the line, and as lines of blocks, without their remarks."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line.strip().partition(" # ")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return re.findall(r"`([^`\n]+)`", prose), lines


def commands(codes: list[str]) -> Iterator[list[str]]:
    for code in codes:
        if match := re.match(r"(?:.*(?:&&|\|) )?finelens ([a-z-].*)", code):
            words = shlex.split(match.group(1))
            yield words[: min((i for i, word in enumerate(words) if word in (">", "|", "&&")), default=len(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_and_options_are_those_of_the_command(page):
    spans, lines = in_code(page)
    for words in commands([*spans, *lines]):
        command, rest = command_of(words)
        assert command is not cli or rest[:1] in (["--help"], ["--version"]), f"no verb: finelens {' '.join(words)}"
        unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - options_of(command)
        assert not unknown, f"finelens {' '.join(words)}"
    scripts = "".join(path.read_text(encoding="utf-8") for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/**/*.py")))
    named = {option for span in spans for option in OPTION.findall(span)} - every_option() - OTHERS
    assert {option for option in named if f'"{option}"' not in scripts} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_have_the_options_that_are_shown(page):
    spans, lines = in_code(page)
    for line in [*spans, *lines]:
        match = re.search(r"python (-m )?((?:benchmarks|scripts)[/.][\w./]+)(.*)", line)
        if match is None:
            continue
        path = ROOT / (f"{match.group(2).replace('.', '/')}/__main__.py" if match.group(1) else match.group(2))
        assert path.is_file(), line
        assert {option for option in OPTION.findall(match.group(3)) if f'"{option}"' not in script_text(path)} == set(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_names_and_options_of_a_run_are_there(page):
    text = page.read_text(encoding="utf-8")
    spans, _ = in_code(page)
    # That page is about a package of the reader's own.
    own = page.stem == "adding_a_method"
    for span in spans:
        for file in re.findall(r"(?:benchmarks|scripts|tests|docs|src)/[\w./*-]+", span):
            assert own or any(ROOT.glob(file.rstrip("./"))), file
        for name in re.findall(r"(?<![\w/.])finelens(?:\.\w+)+", span):
            assert found(name), name
    named = {f"{section}.{key}" for section, key in re.findall(rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z_]+)\b(?!\()", text)}
    known = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys}
    assert named - known - NO_OPTIONS == set()
    assert {name for name in re.findall(r"\bFINELENS_[A-Z_]+\b", text) if not any(name in source for source in SOURCES)} == set()


def found(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(place, part):
                return False
            place = getattr(place, part)
        return True
    return False
