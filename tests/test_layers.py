"""The rule of dependencies that ``make test`` checks with import-linter: it covers the whole package, and it bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import finelens

PACKAGE = Path(finelens.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
ROOT_MODULES = {"__init__", "__main__", "_version", "cli", "errors", "estimator", "testing"}


@pytest.fixture
def copied(tmp_path) -> Path:
    """The package where a test may spoil it, beside the contract."""
    shutil.copyfile(PYPROJECT, tmp_path / "pyproject.toml")
    shutil.copytree(PACKAGE, tmp_path / "finelens", ignore=lambda _, names: [name for name in names if not (name.endswith(".py") or "." not in name)])
    return tmp_path / "finelens"


def lint(package: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` on the package; it looks the package up by name, hence a process of its own."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200"}
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, check=False)


def contract() -> dict:
    (found,) = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    return found


def test_the_package_keeps_the_rule(copied):
    done = lint(copied)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("solvers/base.py", "from finelens.runs import folder"),
        ("core/threads.py", "import finelens.storage.files"),
        ("methods/auto.py", "def late():\n    from finelens.runs import folder"),
        ("images/views.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from finelens.api import adapt"),
        # Side by side on one layer.
        ("reporting/page.py", "import finelens.bench.command"),
    ],
)
def test_a_forbidden_import_is_found(copied, module, line):
    path = copied / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint(copied)
    assert done.returncode == 1, done.stdout
    assert "0 kept, 1 broken" in done.stdout
    assert f"finelens.{module.removesuffix('.py').replace('/', '.')} -> " in done.stdout


def test_a_package_that_the_rule_does_not_name_is_found(copied):
    (copied / "shed").mkdir()
    (copied / "shed" / "__init__.py").touch()
    done = lint(copied)
    assert done.returncode == 1, done.stdout
    assert "shed" in done.stdout


def test_the_rule_names_every_package_and_ignores_no_import():
    named = {name.strip() for layer in contract()["layers"] for name in layer.split("|")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert named == packages | (ROOT_MODULES - {"__init__", "__main__"})
    assert not {"ignore_imports", "unmatched_ignore_imports_alerting"} & set(contract())
    assert contract()["exhaustive"] is True
    assert contract()["exhaustive_ignores"] == ["__main__"]


def test_the_root_holds_the_doors_and_the_contracts_alone():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_MODULES
