"""The way of a value from function to function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from scripts.structure.code import Class, Code, Routine
from scripts.structure.package import Room, StructureError
from scripts.structure.visit import NOTHING, WHOLE, Shape, Step, Visit


class Walk:
    """The way of one parameter.

    Args:
        code: Where it goes.
        start: The function it enters.
        parameter: Its name there.

    Attributes:
        steps: The calls that pass it on, in the order in which they are met first.
        lost: Calls that it may have gone into and that were not followed, by what is called.
    """

    def __init__(self, code: Code, start: Routine, parameter: str) -> None:
        self.code = code
        self.shapes: dict[tuple[Routine, str], Shape] = {}
        self.returned: dict[tuple[Routine, str], Shape] = {}
        self.steps: list[Step] = []
        self.lost: Counter[str] = Counter()
        before: object = None
        # What a function returns may be known only after another was walked: walk again until nothing is new.
        while before != (self.shapes, self.returned):
            before = (dict(self.shapes), dict(self.returned))
            self._places: set[tuple[object, ...]] = set()
            self._now: set[tuple[Routine, str]] = set()
            self.steps, self.lost = [], Counter()
            self.enter(start, parameter, WHOLE, 0)

    def enter(self, routine: Routine, parameter: str, shape: Shape, depth: int) -> Shape:
        """Walk a function once per parameter; what it returns of the value."""
        key = (routine, parameter)
        known = self.shapes.get(key, NOTHING)
        if key in self._now and shape <= known:
            return self.returned.get(key, NOTHING)
        self._now.add(key)
        self.shapes[key] = known | shape
        result = Visit(self, routine, {parameter: known | shape}, depth).run()
        self.returned[key] = self.returned.get(key, NOTHING) | result
        return self.returned[key]

    def note(self, step: Step) -> None:
        """Write a call down, once per parameter."""
        if (*step.place, step.parameter) not in self._places:
            self._places.add((*step.place, step.parameter))
            self.steps.append(step)

    def moves(self) -> list[Step]:
        """The steps into another room, one for each place in the code."""
        found: dict[tuple[object, ...], Step] = {}
        for step in self.steps:
            if self.room(step.caller) != self.room(step.callee):
                found.setdefault(step.place, step)
        return list(found.values())

    def room(self, routine: Routine) -> Room:
        """The room that a function is in."""
        return self.code.package.room(routine.module)

    def itinerary(self) -> Iterator[str]:
        """A line for each step; those into another room are numbered."""
        numbers = {move: number for number, move in enumerate(self.moves(), 1)}
        for step in self.steps:
            number = numbers.get(step)
            where = f"{step.callee.module.partition('.')[2]}.{step.callee.name}({step.parameter})"
            crossing = "" if number is None else f"  [{self.room(step.caller)} > {self.room(step.callee)}]"
            yield f"{'' if number is None else number:>4} {'  ' * step.depth}{where}{crossing}  from line {step.line}"


def take(code: Code, place: str) -> Walk:
    """Walk a parameter from ``FILE:FUNCTION:PARAMETER``; a method is ``Class.method``."""
    file, name, parameter = place.split(":")
    path = code.package.folder / file
    module = next((module for module in code.package.modules.values() if module.path == path), None)
    if module is None:
        raise StructureError(f"{place}: {path} is not a module of the package")
    holder, _, method = name.rpartition(".")
    found = code.defined.get((module.name, holder or name))
    routine = code.member(found, method) if holder and isinstance(found, Class) else found
    if not isinstance(routine, Routine):
        raise StructureError(f"{place}: no function {name} in {path}")
    arguments = routine.node.args
    if parameter not in {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}:
        raise StructureError(f"{place}: {name} has no parameter {parameter}")
    return Walk(code, routine, parameter)
