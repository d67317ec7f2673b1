"""The table in docs/faults.md holds what it says: a test for every line, every test there, and every test here in a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "faults.md"
REFERENCE = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
OWN = ("faults/test_table.py",)


def lines_of(text: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Fault, what is done, and the tests of each line of the tables."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [(row[0], row[1], REFERENCE.findall(row[-1])) for row in cells if row[0] != "fault"]


def defined(file: str) -> set[str]:
    path = TESTS / file
    return {n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)} if path.is_file() else set()


LINES = lines_of(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", LINES, ids=[line[0][:40] for line in LINES])
def test_every_line_names_tests_that_exist(line):
    fault, done, tests = line
    assert done
    assert tests, f"no test: {fault}"
    missing = [f"{file}::{name}" for file, name in tests if name not in defined(file)]
    assert not missing


def test_every_fault_test_stands_in_the_table():
    named = {reference for _, _, tests in LINES for reference in tests}
    files = [path.relative_to(TESTS).as_posix() for path in sorted((TESTS / "faults").glob("test_*.py"))]
    own = {(file, name) for file in files if file not in OWN for name in defined(file) if name.startswith("test_")}
    assert own - named == set()


def test_a_line_without_a_test_would_be_noticed():
    assert lines_of("| fault | what is done | tests |\n|---|---|---|\n| fire | water | |\n") == [("fire", "water", [])]
    assert len(LINES) > 90
