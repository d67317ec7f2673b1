"""Adaptation and prediction as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from finelens.backbones.features_only import KIND
from finelens.backbones.registry import several
from finelens.classes.hints import hints_by_position
from finelens.classes.taxonomy import read_class_list
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.extra import read_extra
from finelens.feature_store.extra_towers import Beside
from finelens.feature_store.files import is_matrix
from finelens.feature_store.prototypes import Prototypes, given_prototypes
from finelens.images.store import ImageItems
from finelens.methods.auto import AUTO, starting_method
from finelens.methods.registry import DEFAULT_METHOD, find_method
from finelens.runs.auto import choose
from finelens.runs.choose_backbone import choose_backbone
from finelens.runs.classifier import Classifier
from finelens.runs.fit import fit
from finelens.runs.inputs import further_encoders
from finelens.runs.prepare import prepare, release_text
from finelens.runs.resolve import make_config, with_extra
from finelens.runs.sources import source_of

Features = Tensor | np.ndarray


class LabelFreeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Adapts to unlabelled images in ``fit``; labels appear in ``score`` only.

    Args:
        classes: Class names, or a file of them.
        method: Name of the method; ``auto`` chooses one by what it can see without labels.
        minutes: Time that training may take, for ``consensus`` and ``auto``.
        descriptions: {class: [sentence, ...]}, or a JSON file of it.
        backbone: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO``, ``local:DIR`` or ``transformers:DIR_OR_ORG/REPO``.
            Several, ``A,B,C``, are ranked on the images of ``fit`` without labels, and the best is taken.
        seed: Seed of all randomness.
        device: ``cpu``, ``cuda`` or ``mps``.
        options: Values by section and key, e.g. ``{"training": {"epochs": 3}}``.
        verbose: Whether to show lines and progress bars.
        prototypes: As for :meth:`fit`, which uses these where it is given none. For cross-validation, which takes a parameter of ``fit`` with as many
            rows as there are samples for something to be divided among the folds.
        extra_encoders: Further encoders by name (``timm:NAME``, ``transformers:DIR_OR_ORG/REPO``), for methods that look at several at once.

    Attributes:
        classes_: Class names, sorted as scikit-learn's scorers assume; the columns of :meth:`predict_proba` have this order.
        classifier_: The fitted :class:`~finelens.runs.classifier.Classifier`.
        untrained_: Why nothing was trained though the method trains (``training.guard``); None where it was.
        n_features_in_: Feature width D, after a fit on features.
        feature_names_in_: Names of the columns, after a fit on a table that names them.
    """

    def __init__(
        self,
        classes: Sequence[str] | str | Path = (),
        *,
        method: str = DEFAULT_METHOD,
        minutes: float | None = None,
        descriptions: Mapping[str, Sequence[str]] | str | Path | None = None,
        backbone: str = "embedded",
        seed: int = 0,
        device: str = "cpu",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        verbose: bool = False,
        prototypes: Features | None = None,
        extra_encoders: Sequence[str] = (),
    ) -> None:
        self.classes, self.method, self.minutes, self.descriptions, self.backbone, self.seed = classes, method, minutes, descriptions, backbone, seed
        self.device, self.options, self.verbose, self.prototypes = device, options, verbose, prototypes
        self.extra_encoders = extra_encoders

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
                Without ``classes`` the classes are called 0 to C - 1. By default those that this object was made with.
            logit_scale: The model's multiplier of cosines, beside features; by default 100, as CLIP models have it.
            hints: Class names of a few images by their position in ``X``, given on purpose: what few-shot methods learn from, and fixed labels for
                the others. The empty name says "none of these classes".

        Raises:
            UserError: Input that cannot be used.
        """
        source, names = source_of(X), self._names()
        texts = self._texts(X, self.prototypes if prototypes is None else prototypes, logit_scale, names)
        console = Console(enabled=self.verbose)
        options = with_extra(self.method, self.options or {}, self.extra_encoders)
        start = starting_method(self.method, options, self.minutes)
        source.check(find_method(start))
        candidates = several(self.backbone)
        told = {"backbone": candidates[0] if texts is None else KIND, "seed": self.seed, "device": self.device, "logit_scale": logit_scale}
        config = make_config("adapt", source.name, start, options, **told)
        if len(candidates) > 1 and texts is None:
            chosen = choose_backbone(candidates, config, names, self.descriptions, source, console)
            config = replace(config, backbone=chosen.spec)
        if config.stage.name != "none":
            raise UserError(f"stage {config.stage.name} is for runs in a folder: use finelens.adapt(..., stage={config.stage.name!r})")
        extra = read_extra(**further_encoders(config), source_named=False)
        prepared = prepare(config, names if texts is None else texts.classes.names, self.descriptions, console, source, texts)
        if extra is not None:
            prepared = replace(prepared, limits=extra.wide_enough(prepared.limits))
        undecided = self.method == AUTO or self.minutes is not None
        loaded = source.load(prepared.limits, console, seldom=not (undecided or config.entry.needs_pixels))
        if extra is not None:
            prepared = replace(prepared, extra=extra.of(loaded, Beside(prepared.engine, prepared.limits.short_side)))
        known = None if hints is None else hints_by_position(hints, loaded.records, prepared.classes.names)
        if undecided:
            choice = choose(prepared, loaded, config, known, self.minutes, console)
            config, prepared = choice.config, choice.prepared
        release_text(prepared)
        fitted = fit(prepared, loaded.store, config, console, hints=known)
        self.classifier_, self.untrained_ = Classifier(fitted.model, config, extra), fitted.untrained
        given = np.array(names) if names or texts is None else np.arange(len(prepared.classes))
        self._order = np.argsort(given)
        self.classes_ = given[self._order]
        if texts is not None:
            validate_data(self, X, skip_check_array=True)
        return self

    def _texts(self, X: Any, prototypes: Features | None, logit_scale: float | None, names: Sequence[str]) -> Prototypes | None:
        """What stands for the texts beside features; None beside photographs, whose model encodes texts."""
        if is_matrix(X) != (prototypes is not None):
            raise UserError("features and prototypes go together: give fit features (N, D) in floating point and prototypes=(C, D)")
        if prototypes is None:
            if logit_scale is not None:
                raise UserError("logit_scale has an effect beside features only: a model of photographs has its own; leave it out")
            return None
        if self.descriptions is not None:
            raise UserError("descriptions have no effect beside prototypes, which stand for the texts; leave one of the two out")
        return given_prototypes(prototypes, names or [str(c) for c in range(len(prototypes))])

    def _names(self) -> list[str]:
        return read_class_list(self.classes)[0] if isinstance(self.classes, (str, Path)) else list(self.classes)

    def predict_proba(self, X: str | Path | ImageItems | Features) -> np.ndarray:
        """Class probabilities (N, C) by ``classes_``; NaN in the row of an image that cannot be read, or of a feature of length 0."""
        check_is_fitted(self)
        if is_matrix(X) and hasattr(self, "feature_names_in_"):
            try:
                validate_data(self, X, reset=False, skip_check_array=True)
            except ValueError as error:
                # Columns in another order are other features.
                raise UserError(str(error)) from error
        return self.classifier_.predict_proba(X)[:, self._order]

    def predict(self, X: str | Path | ImageItems | Features) -> np.ndarray:
        """Classes (N,); what has no probabilities gives the empty string, or -1 where classes are numbers."""
        p = self.predict_proba(X)
        unknown = np.isnan(p).any(1)
        found: np.ndarray = self.classes_[np.where(unknown[:, None], 0.0, p).argmax(1)]
        if not unknown.any():
            return found
        return np.where(unknown, "" if self.classes_.dtype.kind == "U" else -1, found)
