"""Features of images by the unadapted tower, each computed once: from the cache where they are, else from the tower and into the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from finelens.core.console import Console
from finelens.engine.engine import Engine
from finelens.feature_store.crops import Crops
from finelens.feature_store.store import FeatureStore
from finelens.images.batches import batches, centre_batches, inference_batches
from finelens.images.known import reader_versions
from finelens.images.view_config import ViewConfig
from finelens.images.views import INFERENCE_SEED
from finelens.protocol import Backbone, ImageStore, InferenceViews, TargetFeatures, ViewPlan
from finelens.storage.cache import state_digest
from finelens.storage.cache_place import LIMIT_VARIABLE, cache_limit
from finelens.storage.rows import RowCache

BATCH = 64
# Part of every key: raise it when centre or crop views of the same file change, or what a tower makes of them.
VIEWS_SCHEMA = 4
CENTRE = "centre"

Rows = tuple[list[int], dict[str, Tensor]]


def tower_digest(backbone: Backbone) -> str:
    """Hash of all that decides what the image side makes of a view: weights, architecture and preprocessing, whatever the model is called."""
    config = {key: value for key, value in backbone.image_config().items() if key != "name"}
    parts = [state_digest(backbone.image_state()), config, asdict(backbone.preprocess)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def target_features(engine: Engine, store: ImageStore, short_side: int, console: Console) -> TargetFeatures:
    """Features of the target images on the engine's device: as a feature file has them, or of the centre views.

    Args:
        engine: Runs the unadapted backbone.
        store: Images or features.
        short_side: See :class:`FeatureEncoder`.
        console: Progress.
    """
    if isinstance(store, FeatureStore):
        return _on(engine.device, store.features)
    return FeatureEncoder(engine, short_side).centre(store, console, "look at images")


class FeatureEncoder:
    """Encodes stores with the tower as it is when this object is made; make it before anything is adapted.

    On a CPU the tower always gets full chunks, because the last bits of a row depend on the size of its batch: what a row holds is then a function of
    the image alone, whether the cache is empty, full or in between.

    Args:
        engine: Runs the backbone.
        short_side: Short side at which originals are kept (``DecodeLimits.short_side``); it shows in the views.

    Attributes:
        key: Everything but the images and the place (``storage.cache.cache_key``) that decides what comes out.
    """

    def __init__(self, engine: Engine, short_side: int) -> None:
        self.engine = engine
        self.key = [
            tower_digest(engine.backbone),
            f"short side {short_side}, views {VIEWS_SCHEMA}",
            f"{engine.precision.name}, {next(engine.backbone.parameters()).dtype}",
            torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else engine.device.type,
            *reader_versions(),
        ]

    def centre(self, store: ImageStore, console: Console, what: str) -> TargetFeatures:
        """Features of the centre views of a store, in its order, on the engine's device; several processes share the images.

        Args:
            store: Images.
            console: Progress.
            what: Label of the bar.
        """
        columns = self.engine.over_images(store, lambda part: self._centre(part, console, what))
        return TargetFeatures(columns["global"], columns["cls"])

    def _centre(self, store: ImageStore, console: Console, what: str) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        with ExitStack() as stack:
            bar = stack.enter_context(console.progress(len(store), what))
            # Closing writes what was encoded, whatever interrupts the loop.
            for positions, rows in stack.enter_context(closing(self.stream(store, console))):
                for name, values in rows.items():
                    if name not in columns:
                        columns[name] = torch.empty(len(store), *values.shape[1:], dtype=values.dtype)
                    columns[name][positions] = values
                bar.update(len(positions))
        return {name: columns[name].to(self.engine.device) for name in ("global", "cls")}

    def stream(self, store: ImageStore, console: Console, *, patches: bool = False) -> Generator[Rows, None, None]:
        """Features of the centre views as they come, in any order, on the CPU.

        Args:
            store: Images.
            console: Told when nothing can be kept.
            patches: Whether patch tokens are wanted as well.

        Yields:
            Positions in the store (B), and ``global`` (B, E) of unit norm, ``cls`` (B, W), and ``patches`` (B, N, W) if wanted.
        """

        def views(order: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
            for index, pixels in centre_batches(store, self.engine.backbone.preprocess, BATCH, order=order):
                yield index.tolist(), pixels

        def encode(pixels: Tensor) -> dict[str, Tensor]:
            tokens = self.engine.encode_each(pixels, patches=patches)
            own = {"global": tokens.global_, "cls": tokens.cls}
            return own if tokens.patches is None else {**own, "patches": tokens.patches}

        names = _contents(store)
        if not patches:
            yield from self._stream(CENTRE, names, views, encode, console)
            return
        with self._cache(CENTRE) as centre:
            known = {position for position, _ in centre.read(names)}
            for positions, rows in self._stream("patches", names, views, encode, console):
                new = [i for i, position in enumerate(positions) if position not in known]
                centre.add([names[positions[i]] for i in new], {name: rows[name][new] for name in ("global", "cls")})
                yield positions, rows

    def known(self, store: ImageStore) -> int:
        """How many centre views of a store are in the cache."""
        with self._cache(CENTRE) as cache:
            return sum(1 for _ in cache.read(_contents(store)))

    def stream_crops(self, store: ImageStore, crops: Crops, console: Console) -> Generator[Rows, None, None]:
        """Features of random crops as they come, in any order, on the CPU.

        Yields:
            Positions in the store (B), ``global`` (B, M, E) of unit norm and ``cls`` (B, M, W).
        """
        plan = ViewPlan(weak=False, strong=False, crops=crops.count)
        view_config = ViewConfig(crop_low=crops.low, crop_high=crops.high)
        size = max(1, BATCH // crops.count)

        def views(order: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
            for batch in batches(store, self.engine.backbone.preprocess, plan, view_config, crops.seed, 0, size, order=order):
                assert batch.crops is not None
                yield batch.index.tolist(), batch.crops

        keep = self.views_size(len(store), crops.count) <= cache_limit()
        return self._stream(_kind(crops), list(store.ids), views, self._encode_views, console, keep=keep)

    def stream_inference(self, store: ImageStore, plan: InferenceViews, console: Console) -> Generator[Rows, None, None]:
        """Features of the further views that a method answers from, as they come, in any order, on the CPU.

        Views belong to the content of an image, so copies share a row. Squares are the :class:`Crops` of the inference seed, and share their rows.

        Yields:
            Positions in the store (B), ``global`` (B, M, E) of unit norm and ``cls`` (B, M, W).
        """
        crops = plan.kind == "crops"
        kind = _kind(Crops(plan.count, INFERENCE_SEED, plan.low, plan.high)) if crops else json.dumps(["inference", asdict(plan)])

        def views(order: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
            size = max(1, 4 * BATCH // (1 + plan.count))
            for index, _, further in inference_batches(store, self.engine.backbone.preprocess, plan, size, order=order):
                yield index.tolist(), further

        keep = self.views_size(len(store), plan.count) <= cache_limit()
        return self._stream(kind, _contents(store), views, self._encode_views, console, keep=keep)

    def views_size(self, images: int, count: int) -> int:
        """Bytes that features of ``count`` views of each image take on the disk."""
        return images * count * 4 * (self.engine.backbone.dim + self.engine.backbone.width)

    def say_size(self, images: int, count: int, console: Console) -> None:
        """Say beforehand what views take in the cache, or that they are too many for it."""
        size, limit = self.views_size(images, count), cache_limit()
        if not limit:
            return
        what = f"{count} views of {images} images: {size / 1e9:.2g} GB"
        if size > limit:
            console.say(f"{what}, more than the cache may take ({LIMIT_VARIABLE}={limit / 1e9:.2g}), so not all are kept")
        else:
            console.say(f"{what} in the cache at most ({LIMIT_VARIABLE}=0 keeps none)")

    def _encode_views(self, pixels: Tensor) -> dict[str, Tensor]:
        tokens = self.engine.encode_each(pixels.flatten(0, 1))  # (B M, ...)
        return {name: x.unflatten(0, pixels.shape[:2]) for name, x in (("global", tokens.global_), ("cls", tokens.cls))}

    def _cache(self, kind: str) -> RowCache:
        return RowCache([*self.key, kind])

    def _stream(
        self,
        kind: str,
        names: Sequence[str],
        views: Callable[[np.ndarray], Iterator[tuple[list[int], Tensor]]],
        encode: Callable[[Tensor], dict[str, Tensor]],
        console: Console,
        *,
        keep: bool = True,
    ) -> Generator[Rows, None, None]:
        missing = np.ones(len(names), dtype=bool)
        with self._cache(kind) as cache:
            for position, row in cache.read(names):
                missing[position] = False
                yield [position], {name: tensor[None] for name, tensor in row.items()}
            # Copies and links to one content are encoded once.
            copies: dict[str, list[int]] = {}
            for position in np.flatnonzero(missing).tolist():
                copies.setdefault(names[position], []).append(position)
            for positions, pixels in views(np.array([own[0] for own in copies.values()], dtype=np.int64)):
                rows = {name: tensor.cpu() for name, tensor in encode(pixels).items()}
                if keep:
                    cache.add([names[position] for position in positions], rows)
                counts = [len(copies[names[position]]) for position in positions]
                yield (
                    [copy for position in positions for copy in copies[names[position]]],
                    {name: tensor.repeat_interleave(torch.tensor(counts), 0) if max(counts) > 1 else tensor for name, tensor in rows.items()},
                )
        if cache.error is not None:
            console.warn(f"features are not kept for the next run: {cache.error}")


def _contents(store: ImageStore) -> list[str]:
    """What images are called in the cache. Views of exact duplicates are the same, so they share a row: the ordinal behind the digest is left out."""
    return [sample_id.partition("-")[0] for sample_id in store.ids]


def _kind(crops: Crops) -> str:
    return json.dumps(["crops", asdict(crops)])


def _on(device: torch.device, features: TargetFeatures) -> TargetFeatures:
    return replace(features, global_=features.global_.to(device), cls=features.cls.to(device))
