"""A solver that takes several feature spaces: the joint-space feature, the tower's pooled token, features of further encoders from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from finelens.backbones.registry import is_encoder_spec
from finelens.core.options import require
from finelens.errors import UserError
from finelens.feature_store.paths import FOLDER_SUFFIX, SUFFIXES
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.protocol import FeatureRows, ImageTokens, Rows, TargetFeatures
from finelens.solvers.rows import RowsBeside
from finelens.solvers.views import ViewsSolver

# The built-in second view: the tower's pooled token before the projection.
CLS = "cls"


@dataclass(frozen=True)
class ExtraConfig(SolverConfig):
    """Options of methods with several views.

    Attributes:
        extra: Views beside the joint-space feature: ``cls`` is the tower's pooled token before the projection, anything else the path of a feature
            file of a further encoder, or an encoder by name (``timm:NAME``, see docs/features.md); an empty list leaves the first alone.
        extra_names: Text files of row names, for feature files that are arrays of another origin: one for all, or one each.
    """

    extra: tuple[str, ...] = (CLS,)
    extra_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        usable = self.extra.count(CLS) <= 1 and all(Path(path).suffix.lower() in (*SUFFIXES, FOLDER_SUFFIX) for path in self.files)
        require(usable, "method.extra", "[], or cls, feature files (.safetensors, .npy) and encoders (timm:NAME)", list(self.extra))
        super().__post_init__()

    @property
    def others(self) -> tuple[str, ...]:
        """The further encoders among the views, as files or by name."""
        return tuple(entry for entry in self.extra if entry != CLS)

    @property
    def files(self) -> tuple[str, ...]:
        """The feature files among them."""
        return tuple(entry for entry in self.others if not is_encoder_spec(entry))


class ExtraTask(SolverTask):
    """Gives the solver a list of feature matrices, and says how much each of them counts."""

    solver: ViewsSolver
    config: ExtraConfig
    widths_: Tensor

    def notes(self) -> list[str]:
        """What the solver decided, and how much each view weighs."""
        names = ["joint space", *("pooled token" if entry == CLS else _short(entry) for entry in self.config.extra)]
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, self.solver.weights_.tolist(), strict=True))
        silent = [name for name, weight in zip(names, self.solver.weights_.tolist(), strict=True) if not weight]
        why = "near images in it do not share classes as those in the joint space do"
        return [
            *super().notes(),
            f"how much each kind of feature counts, found without labels (weights of the views): {weights}",
            *(f"view {name} is not listened to: {why}" for name in silent),
        ]

    @property
    def listened(self) -> int:
        """Further encoders whose view has a weight."""
        weights = zip(self.config.extra, self.solver.weights_.tolist()[1:], strict=True)
        return sum(weight > 0 for entry, weight in weights if entry != CLS)

    def rows(self, tokens: ImageTokens | TargetFeatures) -> Tensor | list[Tensor]:
        """The joint-space feature and the other views."""
        return self._views(tokens, tokens.extra if isinstance(tokens, TargetFeatures) else ())

    def many_rows(self, features: TargetFeatures) -> Rows | None:
        """The joint-space feature and the other views."""
        if features.rows is None or features.cls_rows is None:
            return None
        left = iter(features.extra_rows)
        views = [features.cls_rows if entry == CLS else next(left) for entry in self.config.extra]
        return RowsBeside([features.rows, *views]) if views else features.rows

    def seen(self, images: Tensor) -> Tensor | list[Tensor]:
        """The joint-space feature and the other views, of pixels or rows; features of further encoders are the last columns of the rows."""
        if not isinstance(images, FeatureRows):
            return self._views(self.engine.encode_frozen(images), ())
        own = self.engine.backbone.dim + self.engine.backbone.width
        further = images[:, own:].as_subclass(Tensor)
        widths = [width for entry, width in zip(self.config.extra, self.widths_[1:].tolist(), strict=True) if entry != CLS]
        parts = further.split(widths, 1) if widths and further.shape[1] == sum(widths) else ()
        return self._views(self.engine.encode_frozen(images[:, :own]), parts)

    def _views(self, tokens: ImageTokens | TargetFeatures, further: Sequence[Tensor]) -> list[Tensor]:
        count = len(self.config.others)
        if len(further) != count:
            raise UserError(f"features of {count} further encoders are needed with the images, got {len(further)}; give them with --extra FILE")
        left = iter(further)
        views = [tokens.cls if entry == CLS else next(left) for entry in self.config.extra]
        return [view.to(self.place) for view in (tokens.global_, *views)]


def _short(entry: str) -> str:
    """What a view is called in a line: a file by its name, an encoder without the folder of its weights."""
    if not is_encoder_spec(entry):
        return Path(entry).name
    scheme, _, rest = entry.partition("@")[0].partition(":")
    return f"{scheme}:{Path(rest).name}" if Path(rest).is_absolute() else f"{scheme}:{rest}" if rest else scheme
