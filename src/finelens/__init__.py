"""finelens: label-free adaptation of vision-language models for fine-grained image classification.

The public names are imported on first use, so that ``import finelens`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finelens._version import __version__

if TYPE_CHECKING:
    from finelens.api import RunResult, adapt, ask, evaluate, export, predict, report, resume, review, zero_shot
    from finelens.classes.merging import merge_hints
    from finelens.errors import UserError
    from finelens.exchange.forms import write
    from finelens.runs.classifier import Classifier
    from finelens.runs.classifier import load_run as load
    from finelens.runs.encode import features
    from finelens.runs.label_free import LabelFreeClassifier

_WHERE = {
    "Classifier": "finelens.runs.classifier",
    "LabelFreeClassifier": "finelens.runs.label_free",
    "RunResult": "finelens.api",
    "UserError": "finelens.errors",
    "adapt": "finelens.api",
    "ask": "finelens.api",
    "evaluate": "finelens.api",
    "export": "finelens.api",
    "features": "finelens.runs.encode",
    "load": "finelens.runs.classifier",
    "merge_hints": "finelens.classes.merging",
    "predict": "finelens.api",
    "report": "finelens.api",
    "resume": "finelens.api",
    "review": "finelens.api",
    "write": "finelens.exchange.forms",
    "zero_shot": "finelens.api",
}

__all__ = [
    "Classifier",
    "LabelFreeClassifier",
    "RunResult",
    "UserError",
    "__version__",
    "adapt",
    "ask",
    "evaluate",
    "export",
    "features",
    "load",
    "merge_hints",
    "predict",
    "report",
    "resume",
    "review",
    "write",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'finelens' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), "load_run" if name == "load" else name)


def __dir__() -> list[str]:
    return sorted(__all__)
