"""Runs the backbone for every method: device, precision, chunking and a count of forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from finelens.core.allocator import keep_freed_memory
from finelens.core.console import Console
from finelens.engine.compiled import CompiledTower
from finelens.engine.device import Precision
from finelens.engine.distributed import ALONE, Processes
from finelens.engine.microbatch import MicroBatch, until_it_fits
from finelens.engine.stopwatch import Stopwatch
from finelens.images.subset import part_of
from finelens.protocol import Backbone, FeatureRows, ImageStore, ImageTokens, PrefixRows, TargetFeatures
from finelens.solvers.rows import ChangedRows


@dataclass(frozen=True)
class TowerFlops:
    """Floating-point operations of one image, two for each multiplication with its addition; only matrix products and convolutions are counted.

    Attributes:
        forward: A forward without gradient.
        with_gradient: A forward and the backward to the trained parameters; 0 where nothing is trained.
        prefix: The part of a forward before the last blocks; 0 where the tower is entered at its start only.
    """

    forward: int
    with_gradient: int
    prefix: int = 0


# Images per forward. On a CPU the activations of a chunk should stay in cache and below the allocator's map threshold (16 trains a convolutional
# tower up to 2.5 times as fast as 64); a GPU wants as many as fit.
CPU_CHUNK, GPU_CHUNK = 16, 512


class Engine:
    """A backbone on a device in a precision.

    Attributes:
        backbone: The (possibly adapted) backbone.
        device: Where it runs.
        precision: What it computes in.
        no_grad_forwards: Images encoded without gradient so far.
        grad_forwards: Images encoded with gradient so far.
        spared_prefixes: Images among both that entered the tower behind its first blocks, less those that were sent through the first blocks alone.
        last_blocks: Blocks that :class:`~finelens.protocol.PrefixRows` have before them.
        stopwatch: Wall time by stage.
        micro: Images per forward; halved when memory runs out.
        tower_flops: Counted work of one image in the tower; None until somebody counts it.
        console: What methods say while they prepare; silent but for warnings unless the run gives its own.
        processes: Those that the rows of every call are divided among; counts are of all rows.
    """

    def __init__(self, backbone: Backbone, device: torch.device, precision: Precision) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.backbone = backbone.to(device)
        self.backbone.text_dtype = precision.of_texts
        self.device = device
        self.precision = precision
        self.no_grad_forwards = 0
        self.grad_forwards = 0
        self.spared_prefixes = 0
        self.last_blocks = 0
        self.stopwatch = Stopwatch()
        self.micro = MicroBatch(CPU_CHUNK if device.type == "cpu" else GPU_CHUNK)
        self.tower_flops: TowerFlops | None = None
        self.console = Console(enabled=False)
        self._compiled: CompiledTower | None = None
        self.processes: Processes = ALONE

    def compile(self) -> None:
        """Compile the image tower's forward, from the next call on."""
        self._compiled = CompiledTower(self.backbone, self.micro.say)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context in which this process encodes all rows that it is given, whatever the others do."""
        before, self.processes = self.processes, ALONE
        try:
            yield
        finally:
            self.processes = before

    def over_images(self, store: ImageStore, work: Callable[[ImageStore], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What ``work`` computes of each image of a store; several processes share the images, and each encodes its own whole.

        Args:
            store: Images.
            work: Tensors (n, ...) by name for a part of the store, in its order.

        Returns:
            Tensors (N, ...) for the store; what the other processes have encoded is counted.
        """
        share = self.processes.divide(len(store), CPU_CHUNK)
        if share is None:
            # What a cache holds may differ by process, and with it what is left to encode.
            with self.alone():
                return work(store)
        before = self.no_grad_forwards
        with self.alone():
            own = work(part_of(store, share.own))
        self.no_grad_forwards = before + self.processes.total(self.no_grad_forwards - before)
        return {name: self.processes.gather(rows, share) for name, rows in own.items()}

    @property
    def counts(self) -> tuple[int, int, int]:
        """What is counted: images encoded without gradient, with gradient, and prefixes spared."""
        return self.no_grad_forwards, self.grad_forwards, self.spared_prefixes

    @counts.setter
    def counts(self, counts: tuple[int, int, int]) -> None:
        self.no_grad_forwards, self.grad_forwards, self.spared_prefixes = counts

    @property
    def flops(self) -> int:
        """Counted work of the tower so far, once :attr:`tower_flops` is known; 0 before."""
        tower = self.tower_flops or TowerFlops(0, 0)
        return self.no_grad_forwards * tower.forward + self.grad_forwards * tower.with_gradient - self.spared_prefixes * tower.prefix

    @torch.no_grad()
    def encode_prefix(self, images: Tensor) -> Tensor:
        """What the frozen blocks make of uint8 views (B, 3, S, S): activations (B, ...) on the device, in the type they are computed in.

        Always in full chunks, so that a row depends on its view alone. Nothing is counted.
        """
        with self.stopwatch("encode"):
            return until_it_fits(lambda: self._prefixes(images), lambda: self.micro.halve(len(images), with_gradient=False))

    def _prefixes(self, images: Tensor) -> Tensor:
        parts = []
        with parametrize.cached():
            for chunk in self._in_full_chunks(images).split(self.micro.size):
                pixels = self._pixels(chunk)
                with self.precision.autocast(self.device):
                    parts.append(self.backbone.encode_prefix(pixels, self.last_blocks))
        return torch.cat(parts)[: len(images)]

    def encode(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode uint8 views (B, 3, S, S) with gradient; tokens come back in float32 (float64 for a float64 backbone).

        :class:`~finelens.protocol.PrefixRows` may stand in the place of pixels, here and in :meth:`encode_frozen`: a forward with a prefix spared.
        """
        self.grad_forwards += len(images)
        with self.stopwatch("encode with gradient"):
            tokens = self._shared(images, patches, prompts)
        if self.micro.recompute:
            self.no_grad_forwards += len(images)
        if isinstance(images, PrefixRows):
            self.spared_prefixes += len(images) * (2 if self.micro.recompute else 1)
        return tokens

    @torch.no_grad()
    def encode_frozen(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode uint8 views (B, 3, S, S) without gradient.

        :class:`~finelens.protocol.FeatureRows` may stand in the place of pixels: they cost no forward, and the fitted centre is applied to them.
        """
        if isinstance(images, FeatureRows):
            assert prompts is None
            return self._tokens_of_rows(images)
        self.no_grad_forwards += len(images)
        if isinstance(images, PrefixRows):
            self.spared_prefixes += len(images)
        with self.stopwatch("encode"):
            return self._shared(images, patches, prompts)

    def encode_each(self, images: Tensor, *, patches: bool = False) -> ImageTokens:
        """:meth:`encode_frozen` in full chunks: on a CPU the last bits of a row depend on the size of its chunk, here on its image alone.

        What fills the last chunk up is not counted.
        """
        count, full = len(images), self._in_full_chunks(images)
        tokens = self.encode_frozen(full, patches=patches)
        self.no_grad_forwards -= len(full) - count
        return ImageTokens(tokens.global_[:count], tokens.cls[:count], None if tokens.patches is None else tokens.patches[:count])

    def _in_full_chunks(self, images: Tensor) -> Tensor:
        """The images, on a CPU with copies of the last one after them until the last chunk is full."""
        lacking = -len(images) % CPU_CHUNK if self.device.type == "cpu" else 0
        return torch.cat([images, images[-1:].expand(lacking, *images.shape[1:])]) if lacking else images

    def _tokens_of_rows(self, rows: Tensor) -> ImageTokens:
        rows = rows.as_subclass(Tensor).to(self.device)
        global_, cls = rows[:, : self.backbone.dim], rows[:, self.backbone.dim :]  # (B, E), (B, W)
        if self.backbone.fitted_state():
            global_ = F.normalize(self.backbone.project(cls), dim=-1)
        return ImageTokens(global_, cls)

    def _shared(self, images: Tensor, patches: bool, prompts: Tensor | None) -> ImageTokens:
        share = self.processes.divide(len(images))
        if share is None:
            return self._chunked(images, patches, prompts)
        own = self._chunked(images[share.own], patches, prompts)
        with self.stopwatch("exchange"):
            parts = [None if part is None else self.processes.gather(part, share) for part in (own.global_, own.cls, own.patches)]
        assert parts[0] is not None
        assert parts[1] is not None
        return ImageTokens(parts[0], parts[1], parts[2])

    def _chunked(self, images: Tensor, patches: bool, prompts: Tensor | None) -> ImageTokens:
        return until_it_fits(
            lambda: self._micro_batched(images, patches, prompts), lambda: self.micro.halve(len(images), with_gradient=torch.is_grad_enabled())
        )

    def _micro_batched(self, images: Tensor, patches: bool, prompts: Tensor | None) -> ImageTokens:
        chunks = images.split(self.micro.size)
        if self.micro.recompute and torch.is_grad_enabled():
            # The tower draws no random numbers, so none need to be kept for the second forward.
            parts = [checkpoint(self._forward, c, patches, prompts, use_reentrant=False, preserve_rng_state=False) for c in chunks]
        else:
            # Weights that a tuning scope computes are computed once, not for every chunk.
            with parametrize.cached():
                parts = [self._forward(chunk, patches, prompts) for chunk in chunks]
        if len(parts) == 1:
            return parts[0]
        return ImageTokens(
            torch.cat([p.global_ for p in parts]),
            torch.cat([p.cls for p in parts]),
            torch.cat([p.patches for p in parts if p.patches is not None]) if patches else None,
        )

    def _forward(self, images: Tensor, patches: bool, prompts: Tensor | None) -> ImageTokens:
        if isinstance(images, PrefixRows):
            tokens = self._forward_rows(images, patches, prompts)
        else:
            pixels = self._pixels(images)
            with self.precision.autocast(self.device):
                tokens = (self._compiled or self.backbone.encode_image)(pixels, patches=patches, prompts=prompts)
        if tokens.cls.dtype is torch.float64:
            return tokens
        return ImageTokens(tokens.global_.float(), tokens.cls.float(), None if tokens.patches is None else tokens.patches.float())

    def _forward_rows(self, rows: PrefixRows, patches: bool, prompts: Tensor | None) -> ImageTokens:
        assert prompts is None
        # Not compiled: the tower's whole forward is what `compile` makes.
        prefix = rows.as_subclass(Tensor).to(self.device, non_blocking=True)
        with self.precision.autocast(self.device):
            return self.backbone.encode_suffix(prefix, self.last_blocks, patches=patches)

    def _pixels(self, images: Tensor) -> Tensor:
        return self.backbone.normalise(images.to(self.device, non_blocking=True))

    def features(self, views: Iterable[Tensor]) -> TargetFeatures:
        """One no-gradient pass over centre views, in order.

        Args:
            views: uint8 batches (B, 3, S, S); at least one.
        """
        parts = [self.encode_frozen(batch) for batch in views]
        return TargetFeatures(torch.cat([p.global_ for p in parts]), torch.cat([p.cls for p in parts]))

    @torch.no_grad()
    def centre(self, features: TargetFeatures) -> TargetFeatures:
        """Fit the backbone's centre to the target images and return their features as the centred backbone gives them."""
        self.backbone.fit_centre(features.cls)
        if not self.backbone.fitted_state():
            return features
        rows = None if features.cls_rows is None else ChangedRows(features.cls_rows, self._project_rows, features.global_.shape[1])
        return replace(features, global_=F.normalize(self.backbone.project(features.cls), dim=-1), rows=rows)

    @torch.no_grad()
    def _project_rows(self, cls: Tensor) -> Tensor:
        """What the centred backbone makes of tokens (n, W), (n, E) on the host."""
        return self.backbone.project(cls.to(self.device)).float().cpu()
