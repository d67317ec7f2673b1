"""Measure how a package is built: its rooms, their floors, and how far a value travels between them. Nothing of it is run.

    python scripts/structure.py [--source src/finelens] [--json FILE] [--verbose]
    python scripts/structure.py --source NEW --before OLD                    # two checkouts side by side
    python scripts/structure.py --walk api/predictions.py:predict:photos     # how far a parameter travels; may be given again
    python scripts/structure.py --source NEW --before OLD --walk "inputs=execution.py:read_inputs:config>runs/inputs.py:read_inputs:config"

Paths are those of package folders, and a walk's file is relative to the package: ``NAME=FILE:FUNCTION:PARAMETER``. ``NAME=`` may be left out. Where
the function moved between two checkouts, ``>`` stands between the old place and the new one. All definitions are the same for both checkouts:

Root module
    A ``.py`` file directly in the package folder, ``__init__.py`` included.
Room
    A root module, or a folder directly in the package with everything below it.
Import
    A pair of modules of which one imports the other, once however many names it takes: at the top, in a function or under ``if TYPE_CHECKING``.
Arrow
    An ordered pair of rooms with an import from the first to the second. An import of ``__version__`` from the package itself is one, too.
Floor
    A room stands above all that it imports: 1 + the highest floor among them. Where imports run in a circle, arrows are set aside so that what is
    left has none: those that stand for the fewest imports together. Set aside from the start is what takes nothing but ``__version__`` or another
    double-underscore name from the package itself: that is a constant, and its ``__init__`` only hands names on.
Climbing arrow, climbing import
    One from a lower floor to a higher one.
Circle
    Rooms each of which reaches each other by imports, those aside from the start not counted.
Move
    A call that hands a value on to a function in another room than its own. Each place in the code counts once, however often it is reached.

A walk starts at one parameter and follows every call that passes it on, into the parameter of the callee. It is still the same value after an
assignment, in a container, as an item or an attribute of it (``config.photos``), after a conversion (``Path``, ``str``, ``list``) or ``replace``, as
a field of a dataclass or of what an ``__init__`` filled, and where a function returns it. What is computed from it (``len``, a hash, a message) is
another value. Building a dataclass is no move, but its ``__post_init__`` may be one. Methods are found by annotations and constructors.
Not followed: methods of a ``Protocol`` or of an abstract class, objects of unknown type, functions passed as values, properties.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Room = str
Arrow = tuple[Room, Room]
# Where in an object the value sits: () is the object itself, ("a", "b") its field a.b; nothing at all: the object does not carry it.
Shape = frozenset[tuple[str, ...]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

NOTHING: Shape = frozenset()
WHOLE: Shape = frozenset({()})
# A field of a field of a field: deeper than that, the whole is taken, or structures that hold themselves would have no end.
DEPTH = 3
CONVERSIONS = {
    *("Path", "PurePath", "PurePosixPath", "str", "list", "tuple", "set", "frozenset", "dict", "sorted", "reversed", "enumerate", "zip"),
    *("iter", "next", "cast", "copy", "deepcopy", "filter", "map", "chain", "asarray", "array"),
}
KEEPING_METHODS = {"absolute", "expanduser", "resolve", "items", "values", "keys", "get", "copy", "pop"}
CONTAINERS = {
    *("list", "List", "Sequence", "Iterable", "Iterator", "Generator", "Collection", "tuple", "Tuple", "set", "Set", "frozenset", "deque"),
    *("dict", "Dict", "Mapping", "MutableMapping", "AbstractContextManager", "ContextManager"),
}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
# Circles of rooms are few and small; beyond this many steps the best answer so far is taken.
SEARCH_LIMIT = 20_000


class StructureError(Exception):
    """What was asked for is not there."""


# ---------------------------------------------------------------------------------------------------------------------------------------- imports


@dataclass(frozen=True)
class Binding:
    """What a name stands for: a module, or a name in one.

    Attributes:
        module: Dotted name of the module.
        name: The name in it; None for the module itself.
    """

    module: str
    name: str | None = None


@dataclass
class Module:
    """One file of the package.

    Attributes:
        name: Dotted, with the package in front.
        path: The file.
        tree: What it holds.
        bindings: What imported names stand for, by the name in this file, wherever the import stands.
        imports: What it imports from the package, one entry a name.
    """

    name: str
    path: Path
    tree: ast.Module
    bindings: dict[str, Binding] = field(default_factory=dict)
    imports: list[Binding] = field(default_factory=list)


class Package:
    """All modules of a package folder.

    Args:
        folder: The folder with the ``__init__.py``.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "__init__.py").is_file():
            raise StructureError(f"{folder} is no package: it has no __init__.py")
        self.folder = folder
        self.name = folder.resolve().name
        self.lines = 0
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((self.name, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            text = path.read_text(encoding="utf-8")
            self.lines += text.count("\n")
            self.modules[name] = Module(name, path, ast.parse(text, str(path)))
        for module in self.modules.values():
            self._read_imports(module)

    def _read_imports(self, module: Module) -> None:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == self.name:
                        module.imports.append(Binding(alias.name))
                        module.bindings[alias.asname or self.name] = Binding(alias.name if alias.asname else self.name)
            elif isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                if source is None:
                    continue
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    binding = Binding(inner) if inner in self.modules else Binding(source, alias.name)
                    module.imports.append(binding)
                    module.bindings[alias.asname or alias.name] = binding

    def _source(self, module: Module, node: ast.ImportFrom) -> str | None:
        """The module of the package that a ``from`` names; None where it is another package's."""
        if not node.level:
            return node.module if node.module and node.module.split(".")[0] == self.name else None
        parts = module.name.split(".")
        above = node.level - 1 if module.path.name == "__init__.py" else node.level
        return ".".join((*parts[: len(parts) - above], *([node.module] if node.module else [])))

    def room(self, module: str) -> Room:
        """The room that a module is in."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"

    @property
    def rooms(self) -> list[Room]:
        """All rooms, by name."""
        return sorted({self.room(name) for name in self.modules})

    def room_imports(self, *, constants: bool = True) -> set[tuple[str, str]]:
        """Pairs of modules of different rooms of which the first imports the second.

        Args:
            constants: Whether those count that take only double-underscore names from the package itself.
        """
        return {
            (module.name, imported.module)
            for module in self.modules.values()
            for imported in module.imports
            if imported.module in self.modules
            and self.room(module.name) != self.room(imported.module)
            and (constants or not (imported.module == self.name and imported.name is not None and imported.name.startswith("__")))
        }

    def arrows(self, *, constants: bool = True) -> Counter[Arrow]:
        """Number of imports by pair of rooms; ``constants`` as for :meth:`room_imports`."""
        return Counter((self.room(a), self.room(b)) for a, b in self.room_imports(constants=constants))


# ----------------------------------------------------------------------------------------------------------------------------------------- floors


def targets(arrows: Iterable[Arrow]) -> dict[Room, list[Room]]:
    """The rooms that a room imports, sorted."""
    found: dict[Room, list[Room]] = {}
    for start, end in sorted(arrows):
        found.setdefault(start, []).append(end)
    return found


def circles(arrows: Iterable[Arrow]) -> list[list[Room]]:
    """Groups of rooms each of which reaches each other."""
    adjacent = targets(arrows)
    reached: dict[Room, set[Room]] = {}
    for start in adjacent:
        seen: set[Room] = set()
        waiting = list(adjacent[start])
        while waiting:
            room = waiting.pop()
            if room not in seen:
                seen.add(room)
                waiting += adjacent.get(room, ())
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in reached if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def shortest_circle(arrows: Iterable[Arrow]) -> list[Arrow]:
    """The arrows of a shortest circle; none where there is no circle."""
    adjacent = targets(arrows)
    best: list[Room] = []
    for start in adjacent:
        before: dict[Room, Room | None] = {start: None}
        waiting = [start]
        for room in waiting:
            if start in adjacent.get(room, ()):
                path = [room]
                while (previous := before[path[-1]]) is not None:
                    path.append(previous)
                if not best or len(path) < len(best):
                    best = path[::-1]
                break
            for following in adjacent.get(room, ()):
                if following not in before:
                    before[following] = room
                    waiting.append(following)
    return list(zip(best, best[1:] + best[:1], strict=True))


class SetAside:
    """The lightest arrows without which no circle is left, by branch and bound.

    Args:
        weights: Number of imports by arrow.

    Attributes:
        best: The arrows.
    """

    def __init__(self, weights: Mapping[Arrow, int]) -> None:
        self._weights = weights
        self._cost = sum(weights.values()) + 1
        self._steps = 0
        self.best: frozenset[Arrow] = frozenset()
        self._search(frozenset(), 0, frozenset())

    def _search(self, removed: frozenset[Arrow], cost: int, kept: frozenset[Arrow]) -> None:
        self._steps += 1
        circle = shortest_circle(self._weights.keys() - removed)
        if not circle:
            if cost < self._cost:
                self._cost, self.best = cost, removed
            return
        if cost + self._at_least(removed, kept) >= self._cost or (self._steps > SEARCH_LIMIT and self.best):
            return
        for arrow in sorted(set(circle) - kept, key=lambda arrow: (self._weights[arrow], arrow)):
            self._search(removed | {arrow}, cost + self._weights[arrow], kept)
            kept |= {arrow}

    def _at_least(self, removed: frozenset[Arrow], kept: frozenset[Arrow]) -> int:
        """What is still to be set aside costs at least this: circles that share no import."""
        left = {arrow: weight for arrow, weight in self._weights.items() if arrow not in removed}
        total = 0
        while circle := shortest_circle(left):
            free = [arrow for arrow in circle if arrow not in kept]
            if not free:
                return self._cost
            least = min(left[arrow] for arrow in free)
            total += least
            for arrow in free:
                left[arrow] -= least
                if not left[arrow]:
                    del left[arrow]
        return total


def floors(rooms: Iterable[Room], arrows: Mapping[Arrow, int]) -> dict[Room, int]:
    """The floor of each room; see the top of this file."""
    adjacent = targets(arrows.keys() - SetAside(arrows).best)
    found: dict[Room, int] = {}

    def floor(room: Room) -> int:
        if room not in found:
            found[room] = 1 + max((floor(lower) for lower in adjacent.get(room, ())), default=0)
        return found[room]

    return {room: floor(room) for room in rooms}


# ------------------------------------------------------------------------------------------------------------------------------------------ walk


@dataclass(frozen=True)
class Routine:
    """A function or a method.

    Attributes:
        module: The module it is in.
        name: Its name, with that of the class or the function around it.
        node: The code.
        owner: The class it is a method of.
    """

    module: str
    name: str
    node: Function = field(compare=False)
    owner: Class | None = field(default=None, compare=False)

    @property
    def kind(self) -> str:
        """``static``, ``class`` or ``plain``."""
        names = {last_name(decorator) for decorator in self.node.decorator_list}
        return "static" if "staticmethod" in names else "class" if "classmethod" in names else "plain"

    @property
    def is_property(self) -> bool:
        """Whether it is read like a field."""
        return bool({"property", "cached_property"} & {last_name(decorator) for decorator in self.node.decorator_list})

    def parameters(self) -> list[str]:
        """What arguments by position go to, without ``self`` or ``cls``."""
        names = [argument.arg for argument in (*self.node.args.posonlyargs, *self.node.args.args)]
        return names[1:] if self.owner is not None and self.kind != "static" else names


@dataclass(frozen=True)
class Class:
    """A class.

    Attributes:
        module: The module it is in.
        name: Its name.
        node: The code.
    """

    module: str
    name: str
    node: ast.ClassDef = field(compare=False)

    @property
    def open_ended(self) -> bool:
        """Whether another class answers as the program runs."""
        return bool({"Protocol", "ABC"} & {last_name(base) for base in self.node.bases})

    def fields(self) -> list[tuple[str, ast.expr]]:
        """Annotated names of the body and their annotations, in order."""
        body = self.node.body
        return [(line.target.id, line.annotation) for line in body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]

    @property
    def is_record(self) -> bool:
        """Whether the constructor only fills the fields."""
        names = {last_name(decorator) for decorator in self.node.decorator_list}
        return "dataclass" in names or "NamedTuple" in {last_name(base) for base in self.node.bases}


# What an expression may be an instance of: an annotation, and the module to read it in; or a class.
Kind = tuple[ast.expr, str] | Class | None


def last_name(node: ast.expr) -> str:
    """``c`` of ``a.b.c``, ``a.b.c(...)`` or ``a.b.c[...]``; empty for anything else."""
    if isinstance(node, (ast.Call, ast.Subscript)):
        return last_name(node.func if isinstance(node, ast.Call) else node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Code:
    """Functions and classes of a package, and what names stand for.

    Args:
        package: The package.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        self.defined: dict[tuple[str, str], Routine | Class] = {}
        for module in package.modules.values():
            for node in ast.walk(module.tree):
                # Definitions at the top, also under an if or a try; what is deeper is found on the way.
                if isinstance(node, (ast.Module, ast.If, ast.Try)):
                    self._define(module.name, ast.iter_child_nodes(node))

    def _define(self, module: str, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.defined.setdefault((module, node.name), Routine(module, node.name, node))
            elif isinstance(node, ast.ClassDef):
                self.defined.setdefault((module, node.name), Class(module, node.name, node))

    def find(self, module: str, name: str) -> Routine | Class | Binding | None:
        """What a name of a module stands for, through however many imports; None where that is not known."""
        seen: set[tuple[str, str]] = set()
        while (module, name) not in seen:
            seen.add((module, name))
            if (module, name) in self.defined:
                return self.defined[module, name]
            binding = self.package.modules[module].bindings.get(name) if module in self.package.modules else None
            if binding is None:
                return None
            if binding.name is None:
                return binding
            module, name = binding.module, binding.name
        return None

    def dotted(self, module: str, node: ast.expr) -> Routine | Class | Binding | None:
        """The same for ``name`` or ``module.name``."""
        if isinstance(node, ast.Name):
            return self.find(module, node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(module, node.value)
            if isinstance(base, Binding):
                inner = f"{base.module}.{node.attr}"
                return Binding(inner) if inner in self.package.modules else self.find(base.module, node.attr)
        return None

    def lineage(self, found: Class) -> Iterator[Class]:
        """A class and those it inherits from, in this package."""
        waiting, seen = [found], set()
        for current in waiting:
            if current not in seen:
                seen.add(current)
                yield current
                bases = (self.dotted(current.module, base.value if isinstance(base, ast.Subscript) else base) for base in current.node.bases)
                waiting += [base for base in bases if isinstance(base, Class)]

    def member(self, found: Class, name: str, *, above: bool = False) -> Routine | None:
        """A method of a class or of one above it; ``above`` leaves the class itself out."""
        for owner in list(self.lineage(found))[int(above) :]:
            for node in owner.node.body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                    return Routine(owner.module, f"{owner.name}.{name}", node, owner)
        return None

    def record_fields(self, found: Class) -> list[str]:
        """The fields of a dataclass in the order of its constructor."""
        names: dict[str, None] = {}
        for owner in reversed(list(self.lineage(found))):
            names.update((name, None) for name, _ in owner.fields())
        return list(names)

    def classes(self, kind: Kind) -> list[Class]:
        """The classes of this package that an expression may be an instance of."""
        if kind is None or isinstance(kind, Class):
            return [] if kind is None else [kind]
        node, module = kind
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.classes((ast.parse(node.value, mode="eval").body, module))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return [*self.classes((node.left, module)), *self.classes((node.right, module))]
        if isinstance(node, ast.Subscript) and last_name(node) in {"Optional", "Union", "Annotated", "Final", "ClassVar"}:
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [found for part in inner for found in self.classes((part, module))]
        found = self.dotted(module, node.value if isinstance(node, ast.Subscript) else node)
        return [found] if isinstance(found, Class) else []

    def element(self, kind: Kind) -> Kind:
        """What the elements of a container are; what a context manager hands out."""
        if isinstance(kind, tuple) and isinstance(kind[0], ast.Subscript) and last_name(kind[0]) in CONTAINERS:
            inner = kind[0].slice
            if isinstance(inner, ast.Tuple):
                return inner.elts[1 if last_name(kind[0]) in MAPPINGS else 0], kind[1]
            return inner, kind[1]
        return None

    def attribute(self, kind: Kind, name: str) -> Kind:
        """What a field or a property is, by its annotation or by what ``__init__`` assigns."""
        for found in self.classes(kind):
            for owner in self.lineage(found):
                for field_name, annotation in owner.fields():
                    if field_name == name:
                        return annotation, owner.module
            method = self.member(found, name)
            if method is not None and method.is_property and method.node.returns is not None:
                return method.node.returns, method.module
            assigned = self._assigned(found, name)
            if assigned is not None:
                return assigned
        return None

    def _assigned(self, found: Class, name: str) -> Kind:
        made = self.member(found, "__init__")
        if made is None:
            return None
        arguments = {argument.arg: argument.annotation for argument in (*made.node.args.args, *made.node.args.kwonlyargs)}
        for node in ast.walk(made.node):
            aims = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if not any(isinstance(aim, ast.Attribute) and last_name(aim.value) == "self" and aim.attr == name for aim in aims):
                continue
            if isinstance(node, ast.AnnAssign):
                return node.annotation, made.module
            value = getattr(node, "value", None)
            if isinstance(value, ast.Name) and (annotation := arguments.get(value.id)) is not None:
                return annotation, made.module
            if isinstance(value, ast.Call) and isinstance(built := self.dotted(made.module, value.func), Class):
                return built
        return None


@dataclass(frozen=True)
class Step:
    """A call that passes the value on.

    Attributes:
        caller: The function that calls.
        line: Where.
        column: Where in the line.
        callee: The function that is called.
        parameter: What the value is called there.
        depth: Number of calls since the start.
    """

    caller: Routine
    line: int
    column: int
    callee: Routine
    parameter: str
    depth: int

    @property
    def place(self) -> tuple[Routine, int, int, Routine]:
        """What makes it one move."""
        return self.caller, self.line, self.column, self.callee


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


class Visit:
    """One function, with what it was given.

    Args:
        walk: The walk that it is a part of.
        routine: The function.
        given: What of the value its parameters carry.
        depth: Number of calls since the start.
    """

    def __init__(self, walk: Walk, routine: Routine, given: dict[str, Shape], depth: int) -> None:
        self.walk, self.code, self.routine, self.depth = walk, walk.code, routine, depth
        self.module = routine.module
        self.carried: dict[str, Shape] = dict(given)
        self.kinds: dict[str, Kind] = {}
        self.inner: dict[str, Routine] = {}
        self.result: Shape = NOTHING
        arguments = routine.node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                self.kinds[argument.arg] = (argument.annotation, self.module)
        named = [*arguments.posonlyargs, *arguments.args]
        if routine.owner is not None and routine.kind != "static" and named:
            self.kinds[named[0].arg] = routine.owner
            self.self_name = named[0].arg
        else:
            self.self_name = ""

    def run(self) -> Shape:
        """Walk the body; what is returned of the value. A constructor returns what it put into ``self``."""
        # A second time, because a loop may carry what is assigned further down.
        for _ in range(2):
            self.body(self.routine.node.body)
        return self.carried.get(self.self_name, NOTHING) if self.routine.node.name == "__init__" else self.result

    def body(self, statements: Iterable[ast.stmt]) -> None:
        """Walk statements in their order."""
        for statement in statements:
            self.statement(statement)

    def branches(self, *bodies: Iterable[ast.stmt]) -> None:
        """Walk statements of which one group runs, or none; afterwards, a name carries what it does after any."""
        before = dict(self.carried)
        after = [before]
        for statements in bodies:
            self.carried = dict(before)
            self.body(statements)
            after.append(self.carried)
        # An else leaves no way past both groups.
        after = after[1:] if len(bodies) == 2 and bodies[1] else after
        self.carried = {name: frozenset().union(*(way.get(name, NOTHING) for way in after)) for name in {name for way in after for name in way}}

    def statement(self, node: ast.stmt) -> None:
        """Walk one statement."""
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            if node.value is not None:
                kind: Kind = (node.annotation, self.module) if isinstance(node, ast.AnnAssign) else self.kind(node.value)
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self.assign(target, self.value(node.value), kind, node.value)
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, self.value(node.value) | self.value(node.target), None)
        elif isinstance(node, ast.Return):
            self.result |= self.value(node.value)
        elif isinstance(node, ast.If):
            self.value(node.test)
            self.branches(node.body, node.orelse)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self.loop(node.target, node.iter)
            self.branches(node.body)
            self.body(node.orelse)
        elif isinstance(node, ast.While):
            self.value(node.test)
            self.branches(node.body)
            self.body(node.orelse)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                shape = self.value(item.context_expr)
                if item.optional_vars is not None:
                    kind = self.kind(item.context_expr)
                    self.assign(item.optional_vars, shape, self.code.element(kind) or kind)
            self.body(node.body)
        elif isinstance(node, ast.Try):
            self.body(node.body)
            self.branches(*(handler.body for handler in node.handlers), [])
            self.body(node.orelse)
            self.body(node.finalbody)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.nested(node)
        elif isinstance(node, ast.Match):
            self.value(node.subject)
            self.branches(*(case.body for case in node.cases), [])
        elif not isinstance(node, ast.ClassDef):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child)

    def nested(self, node: Function) -> None:
        """A function in a function sees the names around it: its body is walked where it stands."""
        self.inner[node.name] = Routine(self.module, f"{self.routine.name}.{node.name}", node)
        carried, kinds, result = dict(self.carried), dict(self.kinds), self.result
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.carried.pop(argument.arg, None)
            self.kinds[argument.arg] = (argument.annotation, self.module) if argument.annotation is not None else None
        self.body(node.body)
        self.carried, self.kinds, self.result = carried, kinds, result

    def assign(self, target: ast.expr, shape: Shape, kind: Kind, value: ast.expr | None = None) -> None:
        """Give a name what it stands for now."""
        if isinstance(target, ast.Name):
            self.carried[target.id], self.kinds[target.id] = shape, kind
        elif isinstance(target, ast.Starred):
            self.assign(target.value, shape, None)
        elif isinstance(target, (ast.Tuple, ast.List)):
            pairs = value.elts if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) else None
            for position, part in enumerate(target.elts):
                if pairs is not None:
                    self.assign(part, self.value(pairs[position]), self.kind(pairs[position]), pairs[position])
                else:
                    self.assign(part, shape, self.part(kind, position))
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            inside = frozenset((target.attr, *path)[:DEPTH] for path in shape)
            self.carried[target.value.id] = self.carried.get(target.value.id, NOTHING) | inside
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            self.carried[target.value.id] = self.carried.get(target.value.id, NOTHING) | shape

    def part(self, kind: Kind, position: int) -> Kind:
        """What stands at a position of a tuple."""
        if isinstance(kind, tuple) and isinstance(kind[0], ast.Subscript) and last_name(kind[0]) in {"tuple", "Tuple"}:
            inner = kind[0].slice
            if isinstance(inner, ast.Tuple) and position < len(inner.elts) and not isinstance(inner.elts[-1], ast.Constant):
                return inner.elts[position], kind[1]
        return None

    def loop(self, target: ast.expr, source: ast.expr) -> None:
        """Give the names of a loop what they stand for."""
        shape = self.value(source)
        if isinstance(source, ast.Call) and last_name(source.func) == "enumerate" and isinstance(target, ast.Tuple) and source.args:
            self.assign(target.elts[0], NOTHING, None)
            self.assign(target.elts[1], shape, self.code.element(self.kind(source.args[0])))
        elif isinstance(source, ast.Call) and last_name(source.func) == "zip" and isinstance(target, ast.Tuple):
            for part, argument in zip(target.elts, source.args, strict=False):
                self.assign(part, self.value(argument), self.code.element(self.kind(argument)))
        else:
            self.assign(target, shape, self.code.element(self.kind(source)))

    def value(self, node: ast.expr | None) -> Shape:
        """Walk an expression; what it carries of the value."""
        if node is None or isinstance(node, ast.Constant):
            return NOTHING
        if isinstance(node, ast.Name):
            return self.carried.get(node.id, NOTHING)
        if isinstance(node, ast.Attribute):
            return inside(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Subscript):
            self.value(node.slice)
            return self.value(node.value)
        if isinstance(node, (ast.Starred, ast.Await)):
            return self.value(node.value)
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            self.result |= self.value(node.value)
            return NOTHING
        if isinstance(node, ast.NamedExpr):
            shape = self.value(node.value)
            self.assign(node.target, shape, self.kind(node.value))
            return shape
        if isinstance(node, ast.IfExp):
            self.value(node.test)
            return self.value(node.body) | self.value(node.orelse)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.BoolOp)):
            return NOTHING.union(*(self.value(part) for part in (node.values if isinstance(node, ast.BoolOp) else node.elts)))
        if isinstance(node, ast.Dict):
            for key in node.keys:
                self.value(key)
            return NOTHING.union(*(self.value(part) for part in node.values))
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self.comprehension(node)
        if isinstance(node, ast.Lambda):
            self.shadowed([argument.arg for argument in (*node.args.posonlyargs, *node.args.args)], node.body)
            return NOTHING
        # Arithmetic, comparisons and messages make another value; calls within them are walked all the same.
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return NOTHING

    def shadowed(self, names: Iterable[str], node: ast.expr) -> None:
        """Walk an expression in which some names stand for something else."""
        carried = dict(self.carried)
        for name in names:
            self.carried.pop(name, None)
        self.value(node)
        self.carried = carried

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Shape:
        """Walk a loop in an expression; its names end with it."""
        carried, kinds = dict(self.carried), dict(self.kinds)
        for generator in node.generators:
            self.loop(generator.target, generator.iter)
            for condition in generator.ifs:
                self.value(condition)
        if isinstance(node, ast.DictComp):
            self.value(node.key)
        shape = self.value(node.value if isinstance(node, ast.DictComp) else node.elt)
        self.carried, self.kinds = carried, kinds
        return shape

    def kind(self, node: ast.expr | None) -> Kind:
        """What an expression is an instance of; None where that is not known."""
        if isinstance(node, ast.Name):
            return self.kinds.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.code.attribute(self.kind(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self.code.element(self.kind(node.value))
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.BoolOp):
            return next((kind for kind in map(self.kind, node.values) if kind is not None), None)
        if isinstance(node, ast.Call):
            if last_name(node.func) == "replace" and node.args:
                return self.kind(node.args[0])
            callee, _ = self.callee(node.func)
            if isinstance(callee, Class):
                return callee
            if isinstance(callee, Routine) and callee.node.returns is not None:
                returns = callee.node.returns
                if last_name(returns) == "Self" and callee.owner is not None:
                    return callee.owner
                return returns, callee.module
        return None

    def callee(self, node: ast.expr) -> tuple[Routine | Class | None, ast.expr | None]:
        """What is called, and the object whose method it is."""
        if isinstance(node, ast.Name):
            if node.id in self.inner:
                return self.inner[node.id], None
            if node.id == "cls" and self.routine.owner is not None:
                return self.routine.owner, None
            found = None if node.id in self.carried or node.id in self.kinds else self.code.find(self.module, node.id)
            return (None if isinstance(found, Binding) else found), None
        if not isinstance(node, ast.Attribute):
            return None, None
        if isinstance(node.value, ast.Call) and last_name(node.value.func) == "super" and self.routine.owner is not None:
            return self.code.member(self.routine.owner, node.attr, above=True), ast.Name(self.self_name)
        local = isinstance(node.value, ast.Name) and (node.value.id in self.carried or node.value.id in self.kinds)
        found = None if local else self.code.dotted(self.module, node)
        if isinstance(found, (Routine, Class)):
            return found, None
        owner = None if local else self.code.dotted(self.module, node.value)
        if isinstance(owner, Class):
            return self.code.member(owner, node.attr), None
        candidates = {method for found in self.code.classes(self.kind(node.value)) if (method := self.code.member(found, node.attr)) is not None}
        method = candidates.pop() if len(candidates) == 1 else None
        if method is None or (method.owner is not None and method.owner.open_ended):
            return None, node.value
        return method, node.value

    def call(self, node: ast.Call) -> Shape:
        """Walk a call: its arguments, and the callee with what they carry."""
        name = last_name(node.func)
        target, arguments = node.func, node.args
        if name in {"partial", "map"} and arguments and isinstance(self.callee(arguments[0])[0], (Routine, Class)):
            target, arguments = arguments[0], arguments[1:]
        callee, holder = self.callee(target)
        receiver = self.value(target.value) if isinstance(target, ast.Attribute) else NOTHING
        by_position = [(self.value(argument), isinstance(argument, ast.Starred)) for argument in arguments]
        by_name = [(keyword.arg, self.value(keyword.value)) for keyword in node.keywords]
        all_carried = NOTHING.union(*(shape for shape, _ in by_position), *(shape for _, shape in by_name))
        if isinstance(callee, Class):
            return self.construct(node, callee, by_position, by_name)
        if isinstance(callee, Routine):
            own = receiver if holder is not None else NOTHING
            if isinstance(holder, ast.Name) and isinstance(target, ast.Attribute) and not isinstance(target.value, ast.Name):
                own = self.carried.get(holder.id, NOTHING)
            return self.pass_on(node, callee, own, by_position, by_name, unbound=holder is None)
        if name == "replace" and arguments:
            return by_position[0][0] | frozenset((field_name, *path)[:DEPTH] for field_name, shape in by_name if field_name for path in shape)
        if name in CONVERSIONS and isinstance(node.func, (ast.Name, ast.Attribute)) and not receiver:
            return all_carried
        if isinstance(node.func, ast.Attribute) and receiver and name in KEEPING_METHODS:
            return receiver
        if all_carried or receiver:
            self.walk.lost[ast.unparse(node.func)] += 1
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and name in {"append", "add", "extend", "update", "insert"}:
            self.carried[node.func.value.id] = receiver | all_carried
        return NOTHING

    def pass_on(
        self,
        node: ast.Call,
        callee: Routine,
        own: Shape,
        by_position: list[tuple[Shape, bool]],
        by_name: list[tuple[str | None, Shape]],
        *,
        unbound: bool = False,
    ) -> Shape:
        """Go into a function with each parameter that carries the value; what comes back."""
        given = dict(self.bind(callee, by_position, by_name, unbound=unbound))
        named = [*callee.node.args.posonlyargs, *callee.node.args.args]
        if own and callee.owner is not None and callee.kind == "plain" and named and not unbound:
            given[named[0].arg] = own
        result = NOTHING
        for parameter, shape in given.items():
            if shape:
                self.walk.note(Step(self.routine, node.lineno, node.col_offset, callee, parameter, self.depth))
                result |= self.walk.enter(callee, parameter, shape, self.depth + 1)
        return result

    def bind(
        self, callee: Routine, by_position: list[tuple[Shape, bool]], by_name: list[tuple[str | None, Shape]], *, unbound: bool
    ) -> Iterator[tuple[str, Shape]]:
        """The parameters that arguments go to."""
        names = callee.parameters()
        if unbound and callee.owner is not None and callee.kind == "plain":
            names = [argument.arg for argument in (*callee.node.args.posonlyargs, *callee.node.args.args)]
        given: dict[str, Shape] = {}
        rest = callee.node.args.vararg
        for position, (shape, starred) in enumerate(by_position):
            aims = names[position:] if starred else names[position : position + 1]
            for name in aims or ([rest.arg] if rest is not None else []):
                given[name] = given.get(name, NOTHING) | shape
        known = {*names, *(argument.arg for argument in callee.node.args.kwonlyargs)}
        others = callee.node.args.kwarg
        for keyword, shape in by_name:
            aim = keyword if keyword in known else others.arg if others is not None else None
            if aim is not None:
                given[aim] = given.get(aim, NOTHING) | shape
        yield from given.items()

    def construct(self, node: ast.Call, built: Class, by_position: list[tuple[Shape, bool]], by_name: list[tuple[str | None, Shape]]) -> Shape:
        """Build an object; in which fields it carries the value."""
        made = self.code.member(built, "__init__")
        if made is not None:
            return self.pass_on(node, made, NOTHING, by_position, by_name)
        if not any(owner.is_record for owner in self.code.lineage(built)):
            return NOTHING
        names = self.code.record_fields(built)
        paths: set[tuple[str, ...]] = set()
        for position, (shape, starred) in enumerate(by_position):
            for name in names[position:] if starred else names[position : position + 1]:
                paths |= {(name, *path)[:DEPTH] for path in shape}
        for keyword, shape in by_name:
            paths |= {(name, *path)[:DEPTH] for name in ([keyword] if keyword else names) for path in shape}
        check = self.code.member(built, "__post_init__")
        if check is not None and paths:
            self.pass_on(node, check, frozenset(paths), [], [])
        return frozenset(paths)


def inside(shape: Shape, name: str) -> Shape:
    """What a field carries of what the whole does."""
    return WHOLE if () in shape else frozenset(path[1:] for path in shape if path[0] == name)


# ----------------------------------------------------------------------------------------------------------------------------------------- report


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


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("src/finelens"), metavar="DIR", help="package folder to measure")
    parser.add_argument("--before", type=Path, metavar="DIR", help="package folder of an earlier checkout, for a second column")
    parser.add_argument("--walk", action="append", default=[], metavar="[NAME=]FILE:FUNCTION:PARAMETER", help="count the moves of a parameter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--verbose", action="store_true", help="print floors, circles, climbing imports and itineraries")
    given = parser.parse_args(arguments)
    try:
        trips = [Trip.of(text) for text in given.walk]
        columns: dict[str, Measured] = {}
        if given.before is not None:
            columns["before"] = measure(given.before, {trip.name: trip.before for trip in trips})
        columns["after" if columns else "now"] = measure(given.source, {trip.name: trip.after for trip in trips})
    except StructureError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(table(columns)))
    if given.verbose:
        for title, measured in columns.items():
            print(f"\n{title}", *details(measured), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps({title: measured.to_json() for title, measured in columns.items()}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
