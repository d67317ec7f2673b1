"""What is measured of a checkout, and how it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.structure.code import Code
from scripts.structure.floors import circles, floors
from scripts.structure.package import Package, Room, StructureError
from scripts.structure.walk import Walk, take


@dataclass(frozen=True)
class Trip:
    """A walk that was asked for.

    Attributes:
        name: What it is called in the table.
        before: Where it starts in the earlier checkout.
        after: Where it starts in the measured one.
    """

    name: str
    before: str
    after: str

    @classmethod
    def of(cls, text: str) -> Trip:
        """Read ``NAME=FILE:FUNCTION:PARAMETER`` or ``NAME=OLD>NEW``."""
        name, separator, places = text.rpartition("=")
        before, moved, after = places.partition(">")
        after = after if moved else before
        if any(place.count(":") != 2 for place in (before, after)):
            raise StructureError(f"--walk {text}: write FILE:FUNCTION:PARAMETER, or NAME=OLD>NEW with two of them")
        function, parameter = after.split(":")[1:]
        return cls(name if separator else f"{function}({parameter})", before, after)


@dataclass(frozen=True)
class Measured:
    """What was measured of one checkout.

    Attributes:
        figures: By what they are called in the table.
        circles: Groups of rooms that import each other.
        floors: Rooms by floor, from the top.
        climbing: Imports that climb, in words.
        walks: The trips, by name.
    """

    figures: dict[str, int]
    circles: list[list[Room]]
    floors: dict[int, list[Room]]
    climbing: list[str]
    walks: dict[str, Walk]

    def to_json(self) -> dict[str, Any]:
        """As it is written with ``--json``."""
        floors = {str(number): rooms for number, rooms in self.floors.items()}
        walks = {name: list(walk.itinerary()) for name, walk in self.walks.items()}
        return {"figures": self.figures, "circles": self.circles, "floors": floors, "climbing": self.climbing, "walks": walks}


def measure(folder: Path, trips: Mapping[str, str]) -> Measured:
    """Measure a package folder.

    Args:
        folder: The package.
        trips: Where walks start, by name.

    Raises:
        StructureError: The folder is no package, or a walk's start is not there.
    """
    package = Package(folder)
    arrows, counted = package.arrows(), package.arrows(constants=False)
    floor = floors(package.rooms, counted)
    climbing = {arrow for arrow in arrows if floor[arrow[0]] < floor[arrow[1]]}
    tied = circles(counted)
    figures = {
        "root modules": len(list(folder.glob("*.py"))),
        "rooms": len(package.rooms),
        "floors": max(floor.values()),
        "arrows between rooms": len(arrows),
        "imports between rooms": sum(arrows.values()),
        "climbing arrows": len(climbing),
        "climbing imports": sum(arrows[arrow] for arrow in climbing),
        "rooms in circles": sum(map(len, tied)),
        "lines of Python": package.lines,
    }
    code = Code(package)
    walks = {name: take(code, place) for name, place in trips.items()}
    for name, walk in walks.items():
        figures[f"moves of {name}"] = len(walk.moves())
        figures[f"rooms that {name} enters"] = len({walk.room(step.callee) for step in walk.steps})
    by_floor = {number: [room for room in package.rooms if floor[room] == number] for number in range(max(floor.values()), 0, -1)}
    words = [
        f"{a.partition('.')[2] or '__init__'} (floor {floor[package.room(a)]}) > {b.partition('.')[2] or '__init__'} (floor {floor[package.room(b)]})"
        for a, b in sorted(package.room_imports())
        if (package.room(a), package.room(b)) in climbing
    ]
    return Measured(figures, tied, by_floor, words, walks)


def table(columns: Mapping[str, Measured]) -> Iterator[str]:
    """The figures, a column for each checkout."""
    rows = list(dict.fromkeys(name for measured in columns.values() for name in measured.figures))
    wide = max(map(len, rows))
    if len(columns) > 1:
        yield " " * wide + "".join(f"{title:>10}" for title in columns)
    for row in rows:
        yield row.ljust(wide) + "".join(f"{measured.figures[row]:>10,}" for measured in columns.values())


def details(measured: Measured) -> Iterator[str]:
    """Floors, circles, climbing imports and walks, line by line."""
    for number, rooms in measured.floors.items():
        yield f"floor {number:>2}  {', '.join(rooms)}"
    for circle in measured.circles:
        yield f"circle    {', '.join(circle)}"
    for line in measured.climbing:
        yield f"climbs    {line}"
    for name, walk in measured.walks.items():
        yield f"\n{name}"
        yield from walk.itinerary()
        yield f"not followed: {sum(walk.lost.values())} calls, most often {', '.join(name for name, _ in walk.lost.most_common(12)) or 'none'}"
