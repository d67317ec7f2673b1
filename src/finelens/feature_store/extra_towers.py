"""Further encoders that see the photographs themselves: encoded like those of the run's own model, and kept in the same cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from finelens.backbones.registry import load_encoder
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder, tower_digest
from finelens.feature_store.store import FeatureStore
from finelens.protocol import Backbone, Loaded


@dataclass(frozen=True)
class ExtraEncoder:
    """What a model keeps of a further encoder.

    Attributes:
        width: Columns of its features.
        tower: Digest of the model that made them; empty where the file did not say.
        backbone: Specification of that model; empty where the file did not say.
        encodes: Whether photographs are encoded with that model as they come, and no file is given.
    """

    width: int
    tower: str = ""
    backbone: str = ""
    encodes: bool = False

    def __str__(self) -> str:
        return f"{self.backbone or 'a model without a name'} with {self.width} columns"


@dataclass(frozen=True)
class Beside:
    """The run's own model, as far as encoding with another one beside it goes.

    Attributes:
        engine: Runs that model; its console, its device and its processes serve the other as well.
        short_side: Short side at which originals are kept.
    """

    engine: Engine
    short_side: int


@dataclass(frozen=True)
class ExtraTower:
    """A further encoder that sees the photographs themselves. It is loaded when it is first asked.

    Attributes:
        spec: As ``backbones.registry.load_encoder`` takes it.
    """

    spec: str

    @cached_property
    def backbone(self) -> Backbone:
        """The model; raises :class:`~finelens.errors.UserError` if it cannot be loaded."""
        return load_encoder(self.spec)

    @cached_property
    def encoder(self) -> ExtraEncoder:
        """What it is."""
        return ExtraEncoder(self.backbone.dim, tower_digest(self.backbone), self.spec, encodes=True)

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.spec

    def rows(self, source: Loaded, beside: Beside, named: bool) -> Tensor:
        """Features (N, D) of the photographs of a store, in its order: from the cache where they are.

        Raises:
            UserError: There are no photographs, or the model cannot be loaded.
        """
        if isinstance(source.store, FeatureStore):
            raise UserError(
                f"--extra-encoder {self.spec} encodes photographs, and there are only features; give its features as well, with --extra FILE"
            )
        engine = self.engine(beside.engine)
        encoder = FeatureEncoder(engine, beside.short_side)
        return encoder.centre(source.store, engine.console, f"look at images with {self.spec.partition('@')[0]}").global_.cpu()

    def rows_of_views(self, views: Tensor, beside: Engine) -> Tensor:
        """Features (B, D) of uint8 centre views (B, 3, S, S) in its own geometry; nothing is looked up or kept.

        Args:
            views: Views.
            beside: Of the run's own model.
        """
        return self.engine(beside).encode_frozen(views).global_

    def engine(self, beside: Engine) -> Engine:
        """Runs it where the run's own model runs, and as that does."""
        engine = Engine(self.backbone, beside.device, beside.precision)
        engine.processes, engine.console = beside.processes, beside.console
        return engine

    def __getstate__(self) -> dict[str, str]:
        # What travels to another process is what to load there.
        return {"spec": self.spec}
