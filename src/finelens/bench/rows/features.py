"""The images of a part: hashed, split and encoded once for all methods that need nothing but the features of the centre view."""

from __future__ import annotations

import hashlib
import time
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.bench.rows.protocols import STRANGER, PartTruth, SkippedError, name_rank
from finelens.bench.sets.data import Part, counted_out
from finelens.bench.sets.sealed import UnlabelledFeatures, UnlabelledImages
from finelens.core.console import Console
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile
from finelens.images.load import BATCH, load
from finelens.images.store import LoadedImages
from finelens.protocol import TargetFeatures
from finelens.storage.cache import cached_tensors, spill_folder


class Pool:
    """All images of a part: hashed at once, encoded once, decoded only when somebody wants pixels.

    Args:
        part: The images and their classes.
        encoder: Around the unadapted backbone.
        limits: Decode limits.
        console: Progress.
    """

    def __init__(self, part: Part, encoder: FeatureEncoder, limits: DecodeLimits, console: Console) -> None:
        self.part, self.encoder, self.limits, self.console = part, encoder, limits, console

    @cached_property
    def loaded(self) -> LoadedImages:
        """Decoded originals."""
        return load(self.part.images, self.limits, self.console, spill_folder())

    @cached_property
    def digests(self) -> list[str]:
        """Hash of each image of the part, in the part's order."""
        images = self.part.images
        if not len(images):
            return []
        if isinstance(images, list) and isinstance(images[0], ImageFile):
            return [_file_digest(image) for image in images]
        return [record.sample_id or record.status for record in self.loaded.records]

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        stored = cached_tensors(["benchmark features", *self.encoder.key, repr(self.limits), *self.digests], self._encode)
        for line in counted_out("files cannot be read as images and are in no number", self._unread_of(stored)):
            self.console.warn(line)
        return stored

    def _unread_of(self, stored: dict[str, Tensor]) -> list[str]:
        return [name for name, row in zip(self.part.names(), stored["rows"].tolist(), strict=True) if row < 0]

    @property
    def unread(self) -> list[str]:
        """Names of what could not be read as an image."""
        return self._unread_of(self._stored)

    def _encode(self) -> dict[str, Tensor]:
        store = self.loaded.store
        features = self.encoder.centre(store, self.console, "encode images")
        rows = torch.tensor([-1 if record.index is None else record.index for record in self.loaded.records])
        seconds = torch.tensor([self._probe()], dtype=torch.float64)
        return {"global": features.global_.cpu(), "cls": features.cls.cpu(), "rows": rows, "seconds": seconds}

    def _probe(self) -> float:
        """Seconds that an image takes, view included; features that were cached took none."""
        start, count = time.perf_counter(), min(BATCH, len(self.loaded.store))
        for _, views in centre_batches(self.images(np.arange(count)), self.encoder.engine.backbone.preprocess, BATCH):
            self.encoder.engine.encode_frozen(views)
        return (time.perf_counter() - start) / count

    @cached_property
    def features(self) -> TargetFeatures:
        """Of the unadapted model, in store order."""
        return TargetFeatures(self._stored["global"].to(self.encoder.engine.device), self._stored["cls"].to(self.encoder.engine.device))

    @property
    def seconds_per_image(self) -> float:
        """Wall time of encoding one image, measured on some of them."""
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

    def images(self, rows: np.ndarray, *, sealed: bool = False) -> UnlabelledImages:
        """Some images for a method: pixels and nothing else; ``sealed`` until they are opened."""
        return UnlabelledImages(self.loaded.store, rows, sealed=sealed)

    def unlabelled_features(self, rows: np.ndarray) -> UnlabelledFeatures:
        """Features of some images for a method that needs no pixels."""
        return UnlabelledFeatures([self.row_digests[row] for row in rows], take(self.features, rows))

    def truth(self) -> PartTruth:
        """What splits are made from; not for methods."""
        labels = np.array(self._by_row(self.part.labels.read().tolist()), dtype=np.int64)
        return PartTruth(labels, self._by_row([name_rank(name) for name in self.part.names()]))


class MixedPool(Pool):
    """Features of two parts as one; images of the second belong to no class of the first.

    Args:
        own: First part.
        other: Second part.
    """

    def __init__(self, own: Pool, other: Pool) -> None:
        super().__init__(own.part, own.encoder, own.limits, own.console)
        self.pools = own, other

    @cached_property
    def features(self) -> TargetFeatures:
        """Of the unadapted model, one part after the other."""
        both = [pool.features for pool in self.pools]
        return TargetFeatures(torch.cat([part.global_ for part in both]), torch.cat([part.cls for part in both]))

    @property
    def unread(self) -> list[str]:
        """Names of what could not be read as an image."""
        return [name for pool in self.pools for name in pool.unread]

    @property
    def seconds_per_image(self) -> float:
        """Of the slower part."""
        return max(pool.seconds_per_image for pool in self.pools)

    @cached_property
    def row_digests(self) -> list[str]:
        """Hash of each image, one part after the other."""
        return [digest for pool in self.pools for digest in pool.row_digests]

    def images(self, rows: np.ndarray, *, sealed: bool = False) -> UnlabelledImages:
        """There are features alone.

        Raises:
            SkippedError: Always.
        """
        raise SkippedError("images of another set are mixed in as features, and the method needs pixels")

    def truth(self) -> PartTruth:
        """What splits are made from; not for methods."""
        own, other = (pool.truth() for pool in self.pools)
        return PartTruth(np.concatenate([own.labels, np.full(len(other.labels), STRANGER)]), [*own.ranks, *other.ranks])


def _file_digest(image: ImageFile) -> str:
    try:
        return hashlib.sha256(image.path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable {error.errno}"


def take(features: TargetFeatures, rows: np.ndarray) -> TargetFeatures:
    """Features of some rows."""
    index = torch.as_tensor(rows)
    return TargetFeatures(features.global_[index], features.cls[index])
