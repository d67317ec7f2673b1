"""scikit-learn's grammar for a run: ``LabelFreeClassifier``."""

from __future__ import annotations

from finelens.runs.label_free import LabelFreeClassifier

__all__ = ["LabelFreeClassifier"]
