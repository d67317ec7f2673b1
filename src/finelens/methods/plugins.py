"""Methods of other packages: what the entry points of the group ``finelens.methods`` name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from finelens.methods.method import Method

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "finelens.methods"


@dataclass(frozen=True)
class Plugins:
    """What was found.

    Attributes:
        methods: In the order of packages and entry points.
        problems: What was left out and why, one line each, naming the package.
        packages: Names of the packages that were looked at.
        brought: Package and version that bring each method, by its name.
    """

    methods: tuple[Method, ...] = ()
    problems: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    brought: Mapping[str, str] = field(default_factory=dict)

    def searched(self) -> str:
        """Where methods of others were looked for; half a sentence."""
        found = ", ".join(self.packages) or "none is installed"
        return f"methods of other packages are found by their entry point {GROUP!r} ({found}), so install the package that brings it with pip"


@cache
def find_plugins(taken: frozenset[str]) -> Plugins:
    """Look at the installed packages, once in a process. What cannot be used is left out and said.

    Args:
        taken: Names that belong to finelens.
    """
    # Not at the top: ``--help`` gets as far as there.
    import logging
    from importlib.metadata import entry_points

    owners, methods, problems = dict.fromkeys(taken, "finelens"), [], []
    packages: dict[str, None] = {}
    brought: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_package(entry), entry.name)):
        package = _package(entry)
        packages[package] = None
        try:
            found = _listed(entry.load())
        # A package that cannot be imported must not take finelens with it, whatever it raises.
        except (Exception, SystemExit) as error:
            problems.append(f"package {package}: its methods ({entry.value}) are left out: {type(error).__name__}: {error}")
            continue
        for method in found:
            owner = owners.setdefault(method.name, package)
            if owner == package and method not in methods:
                methods.append(method)
                brought[method.name] = package if entry.dist is None else f"{package} {entry.dist.version}"
            elif owner != package:
                problems.append(f"package {package}: its method {method.name} is left out: {owner} has one of that name")
    lines = tuple(" ".join(problem.split()) for problem in problems)
    for line in lines:
        logging.getLogger(__name__).warning("%s", line)
    return Plugins(tuple(methods), lines, tuple(packages), brought)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _listed(loaded: Any) -> list[Method]:
    """The methods of an entry point: one, several, or a function that gives them."""
    given = loaded() if callable(loaded) else loaded
    methods = [given] if isinstance(given, Method) else list(given) if isinstance(given, Iterable) else [given]
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(f"expected finelens.methods.registry.Method or a list of them, got {method!r}")
    return methods
