"""The same in scikit-learn's grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from finelens.api import make_config
from finelens.cache import spill_folder
from finelens.choice import choose, starting_method
from finelens.classes.names import read_class_file
from finelens.classifier import Classifier
from finelens.console import Console
from finelens.hints import hints_by_position
from finelens.images.discover import discover
from finelens.images.store import ImageItems
from finelens.methods.auto import AUTO
from finelens.pipeline import decode_limits, fit, load, prepare, release_text


class LabelFreeClassifier(ClassifierMixin, BaseEstimator):
    """Adapts to unlabelled images in ``fit``; labels appear in ``score`` only.

    Args:
        classes: Class names, or a file of them.
        method: Name of the method; ``auto`` chooses one by what it can see without labels.
        minutes: Time that training may take, for ``auto``.
        descriptions: {class: [sentence, ...]}, or a JSON file of it.
        backbone: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO`` or ``local:DIR``.
        seed: Seed of all randomness.
        device: ``cpu``, ``cuda`` or ``mps``.
        options: Values by section and key, e.g. ``{"training": {"epochs": 3}}``.
        verbose: Whether to show lines and progress bars.

    Attributes:
        classes_: Class names, in the order of the columns of :meth:`predict_proba`.
        classifier_: The fitted :class:`~finelens.classifier.Classifier`.
    """

    def __init__(
        self,
        classes: Sequence[str] | str | Path = (),
        *,
        method: str = "microclip",
        minutes: float | None = None,
        descriptions: Mapping[str, Sequence[str]] | str | Path | None = None,
        backbone: str = "embedded",
        seed: int = 0,
        device: str = "cpu",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        verbose: bool = False,
    ) -> None:
        self.classes = classes
        self.method = method
        self.minutes = minutes
        self.descriptions = descriptions
        self.backbone = backbone
        self.seed = seed
        self.device = device
        self.options = options
        self.verbose = verbose

    def fit(self, X: str | Path | ImageItems, y: object = None, *, hints: Mapping[int, str] | None = None) -> LabelFreeClassifier:
        """Adapt to unlabelled images.

        Args:
            X: A folder, or a sequence or data set of paths, Pillow images, uint8 arrays or tensors. Labels that a data set may hold are not touched.
            y: Ignored, present by convention; labels never reach the methods.
            hints: Class names of a few images by their position in ``X``, given on purpose: what few-shot methods learn from, and fixed labels for
                the others. The empty name says "none of these classes".

        Raises:
            UserError: Input that cannot be used.
        """
        console = Console(enabled=self.verbose)
        names = read_class_file(Path(self.classes)) if isinstance(self.classes, (str, Path)) else list(self.classes)
        start = starting_method(self.method, self.options or {}, self.minutes)
        config = make_config("adapt", "(images from Python)", start, self.options or {}, backbone=self.backbone, seed=self.seed, device=self.device)
        prepared = prepare(config, names, self.descriptions, console)
        source = discover(Path(X)) if isinstance(X, (str, Path)) else X
        loaded = load(source, decode_limits(config, prepared.engine.backbone.preprocess), console, spill_folder())
        given = None if hints is None else hints_by_position(hints, loaded.records, names)
        if self.method == AUTO:
            choice = choose(prepared, loaded.store, config, given, self.minutes, console)
            config, prepared = choice.config, choice.prepared
        release_text(prepared)
        self.classifier_ = Classifier(fit(prepared, loaded.store, config, console, hints=given).model, config)
        self.classes_ = np.array(names)
        return self

    def predict_proba(self, X: str | Path | ImageItems) -> np.ndarray:
        """Class probabilities (N, C); NaN in the row of an image that cannot be read."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    def predict(self, X: str | Path | ImageItems) -> np.ndarray:
        """Class names (N,); an image that cannot be read gives the empty string."""
        check_is_fitted(self)
        return np.array([name or "" for name in self.classifier_.predict(X)])
