"""One function, as a value goes through it: what carries the value line by line, and the calls that pass it on."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.structure.code import Class, Function, Kind, Routine, last_name
from scripts.structure.package import Binding

if TYPE_CHECKING:
    from scripts.structure.walk import Walk

# Where in an object the value sits: () is the object itself, ("a", "b") its field a.b; nothing at all: the object does not carry it.
Shape = frozenset[tuple[str, ...]]
NOTHING: Shape = frozenset()
WHOLE: Shape = frozenset({()})
# A field of a field of a field: deeper than that, the whole is taken, or structures that hold themselves would have no end.
DEPTH = 3
CONVERSIONS = {
    *("Path", "PurePath", "PurePosixPath", "str", "list", "tuple", "set", "frozenset", "dict", "sorted", "reversed", "enumerate", "zip"),
    *("iter", "next", "cast", "copy", "deepcopy", "filter", "map", "chain", "asarray", "array"),
}
KEEPING_METHODS = {"absolute", "expanduser", "resolve", "items", "values", "keys", "get", "copy", "pop"}


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
