"""The modules of a package, what each imports, and the rooms that they are in."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

Room = str
Arrow = tuple[Room, Room]


class StructureError(Exception):
    """What was asked for is not there."""


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
