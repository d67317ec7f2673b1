"""The same in scikit-learn's grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from finelens.backbones.features_only import KIND
from finelens.classes.hints import hints_by_position
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.files import given_features, is_matrix
from finelens.feature_store.prototypes import check_width, given_prototypes
from finelens.images.discover import discover
from finelens.images.load import decode_limits, load
from finelens.images.store import ImageItems
from finelens.methods.auto import AUTO
from finelens.methods.registry import find_method
from finelens.runs.auto import choose, starting_method
from finelens.runs.classifier import Classifier
from finelens.runs.config import RunConfig
from finelens.runs.fit import Fitted, fit
from finelens.runs.prepare import prepare, release_text
from finelens.runs.resolve import make_config
from finelens.runs.sources import refuse_pixels_method
from finelens.storage.cache import spill_folder

Features = Tensor | np.ndarray


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
        classifier_: The fitted :class:`~finelens.runs.classifier.Classifier`.
        untrained_: Why nothing was trained though the method trains (``training.guard``); None where it was.
        n_features_in_: Feature width D, after a fit on features.
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

    def fit(
        self,
        X: str | Path | ImageItems | Features,
        y: object = None,
        *,
        prototypes: Features | None = None,
        logit_scale: float | None = None,
        hints: Mapping[int, str] | None = None,
    ) -> LabelFreeClassifier:
        """Adapt to unlabelled images, or to features of any model.

        Args:
            X: A folder, or a sequence or data set of paths, Pillow images, uint8 arrays or tensors. Labels that a data set may hold are not touched.
                Or features (N, D) in floating point, with ``prototypes``.
            y: Ignored, present by convention; labels never reach the methods.
            prototypes: One prototype a class, (C, D), or several, (C, K, D), in the order of ``classes``: what stands for the texts beside features.
                Without ``classes`` the classes are called 0 to C - 1.
            logit_scale: The model's multiplier of cosines, beside features; by default 100, as CLIP models have it.
            hints: Class names of a few images by their position in ``X``, given on purpose: what few-shot methods learn from, and fixed labels for
                the others. The empty name says "none of these classes".

        Raises:
            UserError: Input that cannot be used.
        """
        if is_matrix(X) or prototypes is not None:
            return self._fit_features(X, prototypes, logit_scale, hints)
        if logit_scale is not None:
            raise UserError("logit_scale has an effect beside features only: a model of photographs has its own; leave it out")
        console = Console(enabled=self.verbose)
        names = self._names()
        start = starting_method(self.method, self.options or {}, self.minutes)
        config = make_config("adapt", "(images from Python)", start, self.options or {}, backbone=self.backbone, seed=self.seed, device=self.device)
        prepared = prepare(config, names, self.descriptions, console)
        source = discover(Path(X)) if isinstance(X, (str, Path)) else X
        loaded = load(source, decode_limits(config.views, prepared.engine.backbone.preprocess), console, spill_folder())
        given = None if hints is None else hints_by_position(hints, loaded.records, names)
        if self.method == AUTO:
            choice = choose(prepared, loaded.store, config, given, self.minutes, console)
            config, prepared = choice.config, choice.prepared
        release_text(prepared)
        self._keep(fit(prepared, loaded.store, config, console, hints=given), config)
        self.classes_ = np.array(names)
        return self

    def _fit_features(self, X: Any, prototypes: Features | None, logit_scale: float | None, hints: Mapping[int, str] | None) -> LabelFreeClassifier:
        if not is_matrix(X) or prototypes is None:
            raise UserError("features and prototypes go together: give fit features (N, D) in floating point and prototypes=(C, D)")
        if self.descriptions is not None:
            raise UserError("descriptions have no effect beside prototypes, which stand for the texts; leave one of the two out")
        console, file, options = Console(enabled=self.verbose), given_features(X), self.options or {}
        names, given = self._names(), given_prototypes(prototypes, self._names() or [str(c) for c in range(len(prototypes))])
        check_width(given, file.dim, "features have")
        start = starting_method(self.method, options, self.minutes)
        refuse_pixels_method(find_method(start), "the array")
        told = {"backbone": KIND, "seed": self.seed, "device": self.device, "logit_scale": logit_scale}
        config = make_config("adapt", "(features from Python)", start, options, **told)
        prepared = prepare(config, given.classes.names, None, console, file, given)
        known = None if hints is None else hints_by_position(hints, file.records, given.classes.names)
        if self.method == AUTO:
            choice = choose(prepared, file.store, config, known, self.minutes, console)
            config, prepared = choice.config, choice.prepared
        self._keep(fit(prepared, file.store, config, console, hints=known), config)
        self.classes_ = np.array(names) if names else np.arange(len(given.classes))
        self.n_features_in_ = file.dim
        return self

    def _keep(self, fitted: Fitted, config: RunConfig) -> None:
        self.classifier_, self.untrained_ = Classifier(fitted.model, config), fitted.untrained

    def _names(self) -> list[str]:
        return read_class_file(Path(self.classes)) if isinstance(self.classes, (str, Path)) else list(self.classes)

    def predict_proba(self, X: str | Path | ImageItems | Features) -> np.ndarray:
        """Class probabilities (N, C); NaN in the row of an image that cannot be read, or of a feature of length 0."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    def predict(self, X: str | Path | ImageItems | Features) -> np.ndarray:
        """Classes (N,); what has no probabilities gives the empty string, or -1 where classes are numbers."""
        p = self.predict_proba(X)
        unknown = np.isnan(p).any(1)
        found = self.classes_[np.where(unknown[:, None], 0.0, p).argmax(1)]
        if not unknown.any():
            return found
        return np.where(unknown, "" if self.classes_.dtype.kind == "U" else -1, found)
