"""A finished run in memory, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn

from finelens.classes.taxonomy import read_class_list
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.extra import ExtraFiles, check_encoders, extra_of_run
from finelens.feature_store.extra_towers import ExtraTower
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits
from finelens.images.store import ImageItems
from finelens.images.views import views_of_centre
from finelens.protocol import Backbone, FeatureRows, Preprocess
from finelens.runs.config import RunConfig
from finelens.runs.folder import RunFolder
from finelens.runs.model import ANSWER, Model, PackedModel, load_model, pack_model, unpack_model
from finelens.runs.other_classes import model_with_classes
from finelens.runs.predict import Predictions, Request
from finelens.runs.sets import calibrate_on, sets_of
from finelens.runs.sources import asked_at, source_of
from finelens.storage.predictions import softmax


class Classifier(nn.Module):
    """A finished run, ready to predict. Pickles, moves between devices, and is a module without gradients that is always in evaluation mode.

    Attributes:
        model: The loaded model.
        classes: Class names, in the order of the columns of ``predict_proba``.
        extra: Features of further encoders for the images that will be asked about; None where the model looks at none.
    """

    def __init__(self, model: Model, config: RunConfig, extra: ExtraFiles | None = None) -> None:
        super().__init__()
        self.classes = list(model.class_names)
        self.extra = extra
        self._config = config
        self._hold(model)

    def _hold(self, model: Model) -> None:
        self.model = model
        # Its modules, so that state_dict has them.
        self.backbone, self.task = model.engine.backbone, model.task
        self.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        packed = pack_model(self.model)
        tensors, zero_shot = ({name: tensor.cpu() for name, tensor in part.items()} for part in (packed.tensors, packed.zero_shot))
        moved = replace(packed, tensors=tensors, zero_shot=zero_shot)
        return _unpack, (moved, self._config, self.extra, self.model.engine.precision.name, str(self.model.engine.device))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def to(self, device: str | torch.device) -> Self:  # type: ignore[override]
        """Move to a device, at the precision that the run has there; returns itself.

        Raises:
            UserError: The device is not there.
        """
        self._hold(unpack_model(pack_model(self.model), device=str(device)))
        return self

    def with_classes(
        self,
        classes: str | Path | Sequence[str],
        *,
        descriptions: str | Path | None = None,
        prototypes: str | Path | None = None,
        console: Console | None = None,
    ) -> Classifier:
        """A classifier for another list of classes, without a new run; this one stays as it is. See docs/new_classes.md.

        Args:
            classes: Names, or a file of them. Those of the run may be left out, and new ones added where the method has an answer for them.
            descriptions: JSON file of sentences about the classes; without it the one that the run was given.
            prototypes: Prototypes of the other list, for a run that was given prototypes.
            console: What is said.

        Raises:
            UserError: The method has no answer for new names, or what their texts need cannot be had.
        """
        names = read_class_list(classes)[0] if isinstance(classes, (str, Path)) else list(classes)
        quiet = console or Console(enabled=False)
        model = model_with_classes(self.model, self._config, names, quiet, descriptions=descriptions, prototypes=prototypes)
        return Classifier(model, self._config, self.extra)

    def at_full_precision(self) -> Classifier:
        """The same classifier in float32, on its device."""
        model = unpack_model(pack_model(self.model), device=str(self.model.engine.device), precision="float32")
        return Classifier(model, self._config, self.extra)

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise UserError("a classifier keeps the float types of its run; move it with .to(device)")

    @torch.no_grad()
    def forward(self, images: Tensor, *further: Tensor) -> Tensor:
        """Calibrated logits (B, C), float32.

        Args:
            images: uint8 centre views (B, 3, S, S); S is ``backbone.preprocess.image_size``.
            *further: Views of the same photographs for each further encoder that was given by name, as :attr:`preprocesses` says.

        Raises:
            UserError: Further encoders of the run have no views here, or the run has none.
        """
        if further:
            return self.model.logits(self.rows(images, *further))[ANSWER].to(images.device)
        plan = self.model.task.inference
        views = None if plan is None else views_of_centre(images, self._preprocess, plan)
        return self.model.logits(images, views)[ANSWER].to(images.device)

    def rows(self, images: Tensor, *further: Tensor) -> Tensor:
        """Features (B, E + W + D_2 + ...) of views, as the unadapted towers give them; arguments as for :meth:`forward`.

        Raises:
            UserError: Further encoders of the run have no views here, or the run has none.
        """
        check_encoders(self.model.extra, self.extra)
        towers = self._towers
        if len(towers) != len(further) or len(towers) != len(self.model.extra):
            raise UserError(f"the run looks at {len(self.model.extra)} further encoders, and got views for {len(further)}; give views for each")
        engine = self.model.engine
        with self.model.unadapted():
            tokens = engine.encode_frozen(images)
        beside = [tower.rows_of_views(views, engine) for tower, views in zip(towers, further, strict=True)]
        return torch.cat([tokens.global_, tokens.cls, *beside], 1).as_subclass(FeatureRows)

    @property
    def _towers(self) -> tuple[ExtraTower, ...]:
        return () if self.extra is None else self.extra.towers

    @property
    def further_backbones(self) -> tuple[Backbone, ...]:
        """Further encoders that were given by name, in their order; loaded when first asked.

        Raises:
            UserError: One cannot be loaded.
        """
        return tuple(tower.backbone for tower in self._towers)

    @property
    def preprocesses(self) -> tuple[Preprocess, ...]:
        """Geometry of the views that :meth:`forward` takes: of the backbone, and of each further encoder that was given by name."""
        return tuple(backbone.preprocess for backbone in (self.backbone, *self.further_backbones))

    @property
    def stage(self) -> str:
        """What trained the towers before the method: ``none``, or the name of a stage."""
        return self._config.stage.name

    @property
    def limits(self) -> DecodeLimits:
        """What the run refuses and reduces when it decodes."""
        own = decode_limits(self._config.views, self._preprocess)
        return own if self.extra is None else self.extra.wide_enough(own)

    @property
    def hinted(self) -> bool:
        """Whether the run was given the classes of some photographs."""
        return self._config.hints_file is not None

    @property
    def _preprocess(self) -> Preprocess:
        return self.model.engine.backbone.preprocess

    def predictions(self, images: str | Path | ImageItems, *, zero_shot: bool = True, console: Console | None = None) -> Predictions:
        """Logits of a folder, of Python images or of a feature file, by branch and with the unadapted model's beside them."""
        source = asked_at(images) if isinstance(images, (str, Path)) else source_of(images)
        return source.answers(self.request(console or Console(enabled=False), zero_shot=zero_shot))

    def request(self, console: Console, *, zero_shot: bool = True, looks: bool = False) -> Request:
        """A question to this model, as sources take it.

        Args:
            console: Progress.
            zero_shot: Whether to ask the unadapted model as well.
            looks: Whether to hand out the unadapted model's features.
        """
        return Request(self.model, self.limits, console, zero_shot, self.extra, looks)

    def predict_proba(self, images: str | Path | ImageItems) -> np.ndarray:
        """Class probabilities (N, C), one row per input in its order; a file that cannot be read gives a row of NaN.

        Args:
            images: A folder, a feature file, one photograph, a list of paths in a file ``.txt`` or ``.lst``, a sequence of paths, Pillow images,
                uint8 arrays or tensors, or features (N, D) in floating point.
        """
        found = self.predictions(images, zero_shot=False)
        out = np.full((len(found.records), len(self.classes)), np.nan)
        if found.logits:
            probabilities = softmax(found.logits["logits"].numpy())
            for row, record in enumerate(found.records):
                if record.index is not None:
                    out[row] = probabilities[record.index]
        return out

    def predict(self, images: str | Path | ImageItems) -> list[str | None]:
        """Class names, one per input; None for a file that cannot be read."""
        return [None if np.isnan(row[0]) else self.classes[int(row.argmax())] for row in self.predict_proba(images)]

    def predict_sets(
        self, images: str | Path | ImageItems, labelled: str | Path | ImageItems, labels: Sequence[str], *, coverage: float = 0.9
    ) -> list[list[str]]:
        """Conformal sets: classes that hold the true one with a wanted frequency, likeliest first; see docs/calibration.md.

        Args:
            images: What to classify.
            labelled: Photographs with known classes that the model was not shown the classes of, drawn like ``images``.
            labels: Their class names, in the order of ``labelled``; of a folder, sorted by path.
            coverage: Wanted share of sets that hold the true class.

        Returns:
            Class names for each input; empty for one that cannot be read.

        Raises:
            UserError: Too few labels for the coverage, their number is not that of the photographs, or an unknown class.
        """
        seen = self.predictions(labelled, zero_shot=False)
        unknown = sorted(set(labels) - set(self.classes))
        if unknown or len(labels) != len(seen.records):
            what = f"unknown class {unknown[0]!r}" if unknown else f"{len(labels)} labels for {len(seen.records)} photographs"
            raise UserError(f"labels: {what}; give one of the run's classes for each photograph")
        # By place, as names may stand twice.
        numbered = replace(seen, records=[replace(record, name=str(i)) for i, record in enumerate(seen.records)])
        rule = calibrate_on(numbered, {str(i): self.classes.index(label) for i, label in enumerate(labels)}, coverage, "labels")
        return sets_of(self.predictions(images, zero_shot=False), self.classes, rule)


def _unpack(packed: PackedModel, config: RunConfig, extra: ExtraFiles | None, precision: str, device: str) -> Classifier:
    """A pickled classifier on the device that it was on, or on the CPU where that is not there."""
    there = device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available()) or (device == "mps" and torch.backends.mps.is_available())
    return Classifier(unpack_model(packed, device=device if there else "cpu", precision=precision if there else None), config, extra)


def load_run(
    run: str | Path,
    *,
    device: str = "cpu",
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    source_named: bool = False,
) -> Classifier:
    """Load a finished run.

    Args:
        run: The run folder.
        device: Where to run it.
        extra: Feature files of the further encoders that the run was made with, about the images that will be asked about. Photographs need none for
            encoders that were given by name.
        extra_names: Text files of row names for those that are arrays of another origin: one for all, or one each.
        extra_encoders: Where the weights of encoders that were given by name are now, if they have moved.
        source_named: Whether the user names the rows of the images' own feature file.

    Raises:
        UserError: Not a run, not finished, or damaged; or features of other encoders than the run's.
    """
    folder = RunFolder.open(run, lock=False)
    model = load_model(folder.model_dir, device=device)
    files = extra_of_run(model.extra, extra, extra_names, extra_encoders, source_named=source_named)
    return Classifier(model, folder.config, files)
