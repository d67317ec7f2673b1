"""Features of a part, computed once for all methods that need nothing else, and an engine that gives them back as if it had encoded the images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.bench.data import Part
from finelens.bench.guard import NeedsPixels, UnlabelledImages
from finelens.bench.protocols import PartTruth, name_rank
from finelens.cache import cached_tensors, spill_folder
from finelens.console import Console
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile
from finelens.images.store import LoadedImages
from finelens.pipeline import BATCH, load
from finelens.protocol import ImageTokens, TargetFeatures
from finelens.training.engine import Engine


class Pool:
    """All images of a part: hashed at once, encoded once, decoded only when somebody wants pixels.

    Args:
        part: The images and their classes.
        engine: Runs the unadapted backbone.
        weights: Hash of everything that decides the features but for the images.
        limits: Decode limits.
        console: Progress.
    """

    def __init__(self, part: Part, engine: Engine, weights: str, limits: DecodeLimits, console: Console) -> None:
        self.part, self.engine, self.weights, self.limits, self.console = part, engine, weights, limits, console

    @cached_property
    def loaded(self) -> LoadedImages:
        """Decoded originals."""
        return load(self.part.images, self.limits, self.console, spill_folder())

    @cached_property
    def digests(self) -> list[str]:
        """Hash of each image of the part, in the part's order."""
        images = self.part.images
        if isinstance(images, list) and images and isinstance(images[0], ImageFile):
            return [_file_digest(image) for image in images]
        return [record.sample_id or record.status for record in self.loaded.records]

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        return cached_tensors(["benchmark features", self.weights, repr(self.limits), *self.digests], self._encode)

    def _encode(self) -> dict[str, Tensor]:
        store, preprocess = self.loaded.store, self.engine.backbone.preprocess
        parts, start = [], time.perf_counter()
        with self.console.progress(len(store), "encode images") as bar:
            for index, views in centre_batches(store, preprocess, BATCH):
                parts.append(self.engine.encode_frozen(views))
                bar.update(len(index))
        seconds = (time.perf_counter() - start) / len(store)
        rows = torch.tensor([-1 if record.index is None else record.index for record in self.loaded.records])
        return {
            "global": torch.cat([tokens.global_ for tokens in parts]).cpu(),
            "cls": torch.cat([tokens.cls for tokens in parts]).cpu(),
            "rows": rows,
            "seconds": torch.tensor([seconds], dtype=torch.float64),
        }

    @cached_property
    def features(self) -> TargetFeatures:
        """Of the unadapted model, in store order."""
        return TargetFeatures(self._stored["global"].to(self.engine.device), self._stored["cls"].to(self.engine.device))

    @property
    def seconds_per_image(self) -> float:
        """Wall time of one image when the features were computed, views included."""
        return float(self._stored["seconds"][0])

    def _by_row(self, values: list[Any]) -> list[Any]:
        rows = self._stored["rows"].tolist()
        result: list[Any] = [None] * len(self._stored["cls"])
        for value, row in zip(values, rows, strict=True):
            if row >= 0:
                result[row] = value
        return result

    @cached_property
    def row_digests(self) -> list[str]:
        """Hash of each image in store order."""
        return self._by_row(self.digests)

    def images(self, rows: np.ndarray) -> UnlabelledImages:
        """Some images for a method: pixels and nothing else."""
        return UnlabelledImages(self.loaded.store, rows)

    def truth(self) -> PartTruth:
        """What splits are made from; not for methods."""
        labels = np.array(self._by_row(self.part.labels.read().tolist()), dtype=np.int64)
        return PartTruth(labels, self._by_row([name_rank(name) for name in self.part.names()]))


def _file_digest(image: ImageFile) -> str:
    try:
        return hashlib.sha256(image.path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable {error.errno}"


def take(features: TargetFeatures, rows: np.ndarray) -> TargetFeatures:
    """Features of some rows."""
    index = torch.as_tensor(rows)
    return TargetFeatures(features.global_[index], features.cls[index])


class Rows:
    """Stands for a batch of images in calls of ``predict_logits``; whoever looks at pixels finds :class:`NeedsPixels`."""

    def __init__(self, rows: Tensor) -> None:
        object.__setattr__(self, "_rows", rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> NoReturn:
        raise NeedsPixels(name)

    def __getitem__(self, index: Any) -> NoReturn:
        raise NeedsPixels("indexing")

    def __iter__(self) -> NoReturn:
        raise NeedsPixels("iteration")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise NeedsPixels(getattr(function, "__name__", "a function of tensors"))


class ReplayEngine(Engine):
    """Counts as if it encoded; gives features that were computed before, centred as the backbone is when they are asked for.

    Args:
        engine: Runs the backbone.
        fit: Features of the images that are adapted to.
    """

    def __init__(self, engine: Engine, fit: TargetFeatures) -> None:
        super().__init__(engine.backbone, engine.device, engine.precision)
        self._fit = fit
        self._shown: ImageTokens | None = None

    def features(self, views: Iterable[Tensor]) -> TargetFeatures:
        """The features of the fit; the views are never built."""
        self.no_grad_forwards += len(self._fit.cls)
        return self._fit

    @torch.no_grad()
    def show(self, features: TargetFeatures) -> None:
        """Make images known that :class:`Rows` number from 0; test images are not known before they are to be predicted."""
        global_ = features.global_
        if self.backbone.fitted_state():
            global_ = F.normalize(self.backbone.project(features.cls), dim=-1)
        self._shown = ImageTokens(global_, features.cls)

    def encode_frozen(self, images: Tensor, *, patches: bool = False) -> ImageTokens:
        """Look the features up; anything but :class:`Rows` without patches needs pixels."""
        if self._shown is None or patches or not isinstance(images, Rows):
            raise NeedsPixels("encode_frozen")
        rows: Tensor = images._rows
        self.no_grad_forwards += len(rows)
        return ImageTokens(self._shown.global_[rows], self._shown.cls[rows])

    def encode(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> NoReturn:
        """A method that wants a gradient needs pixels."""
        raise NeedsPixels("encode")
