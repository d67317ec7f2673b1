"""Functions and classes of a package, and what names, annotations and attributes stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from scripts.structure.package import Binding, Package

Function = ast.FunctionDef | ast.AsyncFunctionDef
CONTAINERS = {
    *("list", "List", "Sequence", "Iterable", "Iterator", "Generator", "Collection", "tuple", "Tuple", "set", "Set", "frozenset", "deque"),
    *("dict", "Dict", "Mapping", "MutableMapping", "AbstractContextManager", "ContextManager"),
}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


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
