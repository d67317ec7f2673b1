"""Made features of photographs of three trees, and who they are: for tests of the live review."""

from __future__ import annotations

from tests.solvers.data import cloud

NAMES = ("<b>oak</b>", "birch", "beech tree")
SIZES = [140, 100, 80]
TRUTH = [NAMES[i] for i in cloud(SIZES)[2]]


def truth(path: str) -> str:
    """The class of the photograph of that name."""
    return TRUTH[int(path[:3])]
