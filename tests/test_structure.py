"""``scripts/structure``: rooms, floors, circles and walks of a package that is small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.structure.__main__ import main
from scripts.structure.floors import SetAside, circles, floors
from scripts.structure.report import measure

FILES = {
    "__init__.py": "",
    "door.py": "from toy.middle.work import go\n\n\ndef enter(photos: str) -> int:\n    return go(photos)\n",
    "middle/__init__.py": "",
    "middle/work.py": (
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom toy.low import read\n\n\n"
        "@dataclass\nclass Asked:\n    place: Path\n    seed: int\n\n\n"
        "def go(photos: str) -> int:\n    asked = Asked(Path(photos), 0)\n    return inner(asked)\n\n\n"
        "def inner(asked: Asked) -> int:\n    read(asked.seed)\n    return read(asked.place)\n"
    ),
    "low.py": "def read(path: object) -> int:\n    return len(str(path))\n",
}


@pytest.fixture
def package(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "toy"


def test_rooms_floors_and_the_way_of_a_value(package):
    found = measure(package, {"photos": "door.py:enter:photos"})
    assert found.floors == {3: ["door"], 2: ["middle"], 1: ["__init__", "low"]}
    assert found.figures["root modules"] == 3
    assert found.figures["imports between rooms"] == found.figures["arrows between rooms"] == 2
    assert found.figures["climbing imports"] == found.figures["rooms in circles"] == 0
    # From the door to the middle, and from there with the place, not with the seed.
    assert [(move.callee.name, move.parameter) for move in found.walks["photos"].moves()] == [("go", "photos"), ("read", "path")]


def test_an_import_that_climbs_is_found(package):
    (package / "low.py").write_text(FILES["low.py"] + "\n\ndef late() -> None:\n    from toy.door import enter\n\n    enter('')\n")
    found = measure(package, {})
    assert found.circles == [["door", "low", "middle"]]
    assert found.figures["climbing imports"] == 1


def test_the_lightest_arrows_are_set_aside():
    arrows = {("a", "b"): 3, ("b", "a"): 1, ("b", "c"): 1}
    assert SetAside(arrows).best == {("b", "a")}
    assert circles(arrows) == [["a", "b"]]
    assert floors("abc", arrows) == {"a": 3, "b": 2, "c": 1}


def test_the_table_and_what_is_not_there(package, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(["--source", str(package), "--before", str(package), "--json", str(file), "--verbose"]) == 0
    assert "root modules" in capsys.readouterr().out
    assert json.loads(file.read_text())["before"] == json.loads(file.read_text())["after"]
    assert main(["--source", str(package), "--walk", "door.py:leave:photos"]) == 2
    assert capsys.readouterr().err.strip() == f"door.py:leave:photos: no function leave in {package / 'door.py'}"
