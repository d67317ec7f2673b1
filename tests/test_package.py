"""What is installed: every file of the package is in the wheel, and the versions that CI tested are those that the metadata allows."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "finelens"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:>=|==)([0-9.]+)")


def tracked() -> list[Path]:
    """The files of the package that git knows."""
    done = subprocess.run(["git", "ls-files", "-z", "src/finelens"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_every_file_of_the_package_is_in_the_wheel():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["finelens"]
    data = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")}
    left_out = [path for path in tracked() if path not in data and not (path.suffix == ".py" and path.parent in packages)]
    assert left_out == []


def test_the_versions_of_ci_are_allowed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(name): version for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))}
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["dev"]]
    for requirement in wanted:
        found = REQUIREMENT.fullmatch(requirement)
        assert found, requirement
        name, lowest = found.groups()
        assert numbers(pinned[normal(name)]) >= numbers(lowest), requirement


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def test_pythons():
    project = PYPROJECT["project"]
    named = [name.rpartition(" ")[2] for name in project["classifiers"] if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)]
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    assert project["requires-python"] == f">={named[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == named[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"
