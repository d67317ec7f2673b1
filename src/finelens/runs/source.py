"""What a source of images is: of a run, or of a question to one. Photographs and rows of features are two kinds of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from finelens.backbones.registry import load_backbone
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.prototypes import Prototypes, check_width
from finelens.images.decode import DecodeLimits
from finelens.methods.registry import Method
from finelens.protocol import Backbone, ImageRecord, InferenceViews, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.predict import Predictions, Request


@dataclass(frozen=True)
class Listing:
    """Inputs before they are read.

    Attributes:
        count: How many there are.
        digest: Hash of their names, sizes and times of change.
    """

    count: int
    digest: str


class Source(Protocol):
    """Images of a run or of a question, before anything is read. Each method reads what it needs, once."""

    @property
    def name(self) -> str:
        """What messages and the configuration call it."""
        ...

    def backbone(self, wanted: str | None, prototypes: str | Path | None) -> str:
        """Specification of the model of a run, as ``load_backbone`` takes it; ``features`` where features and prototypes are all that is needed.

        Args:
            wanted: What the user asked for; None for what a feature file says, else ``embedded``.
            prototypes: The user's prototypes file.

        Raises:
            UserError: The source cannot be used so.
        """
        ...

    def check(self, method: Method) -> None:
        """Refuse a method that needs what is not there, and a source that is not there itself."""
        ...

    def check_views(self, views: InferenceViews | None, method: str) -> None:
        """Refuse a method whose further views of an image cannot be had."""
        ...

    def open_backbone(self, config: RunConfig, prototypes: Prototypes | None, console: Console) -> Backbone:
        """The backbone of a run, checked against the source and the prototypes.

        Raises:
            UserError: It cannot be loaded or does not fit.
        """
        ...

    def load(self, limits: DecodeLimits, console: Console, *, seldom: bool = False) -> Loaded:
        """The images, decoded where they are photographs.

        Args:
            limits: What to refuse and what to reduce.
            console: Progress.
            seldom: Whether few pixels will be looked at: photographs that are known may then be decoded when they are.

        Raises:
            UserError: None can be read.
        """
        ...

    @property
    def names(self) -> Sequence[str] | None:
        """Names of the inputs, which labels and hints are about; None of a folder, where they are about whatever lies in it.

        Raises:
            UserError: They cannot be read.
        """
        ...

    def labels(
        self, labels: str | Path, classes: Sequence[str], left_out: list[str] | None = None, *, strangers: int | None = None
    ) -> dict[str, int]:
        """True classes by name of the image; arguments as for :func:`finelens.classes.labels.read_labels`."""
        ...

    def only(self, names: Container[str]) -> Source:
        """This source, of which only inputs with one of the names are told of."""
        ...

    def answers(self, asked: Request) -> Predictions:
        """Logits by branch, and with the unadapted model's beside them unless that is not asked for.

        Raises:
            UserError: The model cannot classify these images.
        """
        ...

    def parts(self, asked: Request, within: range | None = None) -> Iterator[Predictions]:
        """As :meth:`answers`, some inputs at a time and in their order, so that memory does not grow with their number.

        Args:
            asked: The question.
            within: Positions of the inputs; all by default.
        """
        ...

    def listing(self) -> Listing:
        """How many inputs there are, and a digest that changes when one of them does."""
        ...

    def joint_features(
        self, encoder: FeatureEncoder, limits: DecodeLimits, wanted: Callable[[str], bool], console: Console
    ) -> tuple[Sequence[ImageRecord], Sequence[str], Tensor]:
        """Records of the inputs, at least of those with a wanted name, and ids and unit-norm features (N, E) at the positions that they name."""
        ...


def digest_of(files: Iterable[tuple[str, Path]]) -> str:
    """Hash of names, sizes and times of change."""
    digest = hashlib.sha256()
    for name, path in files:
        try:
            state = path.stat()
            told = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:
            told = "gone"
        digest.update(f"{name}\0{told}\n".encode())
    return digest.hexdigest()


def load_run_backbone(config: RunConfig, prototypes: Prototypes | None) -> Backbone:
    """The model that a run's configuration names, checked against its prototypes.

    Raises:
        UserError: It cannot be loaded, the prototypes do not fit, or a logit scale is given that has no effect.
    """
    if config.logit_scale is not None:
        raise UserError(f"--logit-scale has no effect: backbone {config.backbone} has its own; leave it out")
    backbone = load_backbone(config.backbone)
    if prototypes is not None:
        check_width(prototypes, backbone.dim, f"features of backbone {config.backbone}")
    return backbone
