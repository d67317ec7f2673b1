"""What the frozen first blocks of the image tower give for a few draws of views, computed once and kept in one unnamed file.

With ``last-k-norm`` the blocks before the last k never change, so what they give depends on the view alone. As published, views are new in every
epoch; here each image has a fixed number of draws, and epochs go round them. From the second round on no view is built and no first block runs.
The file goes with the process: a resumed run computes what it needs again, and gets the same bits.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.backbones.tuning import last_blocks
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import NO_VIEWS
from finelens.protocol import Batch, NotAvailableError, PrefixRows, Task, ViewPlan
from finelens.storage.cache import spill_folder
from finelens.storage.files import write_error
from finelens.training.config import TrainingConfig

KINDS = ("weak", "strong", "crops", "centre")


def check_cached_prefix(engine: Engine, task: Task, scope: str) -> None:
    """Check before the work whether a run can keep prefixes.

    Raises:
        UserError: The tower cannot be entered in the middle, visual prompts enter before the first block, or several processes share the run.
    """
    if engine.processes.count > 1:
        raise UserError("training.cached_prefix is for one process: start it without torchrun, or leave the option out")
    if getattr(task, "prompts", None) is not None:
        raise UserError("training.cached_prefix goes with no visual prompts, which enter before the first block: add --set method.prompts=0")
    try:
        _sample(engine, scope)
    except NotAvailableError as error:
        raise UserError(str(error)) from error


def _sample(engine: Engine, scope: str) -> Tensor:
    """What the frozen blocks give for one view, (...); the engine knows from here on how many are not frozen."""
    engine.last_blocks = last_blocks(scope)
    side = engine.backbone.preprocess.image_size
    return engine.encode_prefix(torch.zeros(1, 3, side, side, dtype=torch.uint8))[0]


class PrefixCache:
    """Activations of every view of every image, by draw and position.

    Args:
        engine: Runs the backbone.
        images: Images of the store, N.
        plan: Views of an image in one step.
        config: The optimisation: scope and draws.

    Raises:
        UserError: The disk is too small.
    """

    def __init__(self, engine: Engine, images: int, plan: ViewPlan, config: TrainingConfig) -> None:
        self.engine, self.plan, self.draws, self.epochs = engine, plan, min(config.cached_prefix, config.epochs), config.epochs
        sample = _sample(engine, config.scope)
        self._shape, self._dtype = sample.shape, sample.dtype
        self._views = plan.weak + plan.strong + plan.crops + plan.centre
        self._bytes = self._views * sample.numel() * sample.element_size()
        self._held = np.zeros((self.draws, images), dtype=bool)
        self._folder = spill_folder() or Path(tempfile.gettempdir())
        total = self._held.size * self._bytes if self.draws < self.epochs else 0
        if total > (free := shutil.disk_usage(self._folder).free):
            raise UserError(
                f"training.cached_prefix={config.cached_prefix} needs {total / 1e9:.3g} GB in {self._folder}, which has {free / 1e9:.3g} GB free: "
                "take fewer draws, fewer crops, or set FINELENS_CACHE to a folder with more room"
            )
        if not total:
            engine.console.warn(f"training.cached_prefix={config.cached_prefix} saves nothing: in {self.epochs} epochs no draw of views occurs twice")
        engine.console.detail(
            f"cached prefix: {self.draws} draws x {images} images x {self._views} views = {total / 1e6:.3g} MB in a temporary file in {self._folder}"
        )
        try:
            self._file: Any = tempfile.TemporaryFile(dir=self._folder, prefix="finelens-prefix-")  # noqa: SIM115 - lives as long as the run
        except OSError as error:
            raise self._write_error(error) from error

    def draw(self, epoch: int) -> int:
        """Which draw an epoch uses."""
        return epoch % self.draws

    def missing(self, epoch: int, positions: np.ndarray) -> ViewPlan:
        """Which views an epoch over these positions has to build: all, or none because what they give is kept."""
        return NO_VIEWS if self._held[self.draw(epoch), positions].all() else self.plan

    def rows(self, batch: Batch, epoch: int) -> Batch:
        """The batch with activations in the place of its views: computed from them and kept, or read where it has none.

        Raises:
            UserError: The file cannot be written.
        """
        index = batch.index.tolist()
        views = [getattr(batch, kind) for kind in KINDS if getattr(batch, kind) is not None]
        with self.engine.stopwatch("prefixes"):
            rows = self._read(epoch, index) if not views else self._keep(epoch, index, views)
        return replace(batch, **self._by_kind(rows))

    def _keep(self, epoch: int, index: list[int], views: list[Tensor]) -> Tensor:
        """Rows (B, V, ...) on the host, of views (B, 3, S, S) or (B, M, 3, S, S)."""
        rows = torch.empty(len(index), self._views, *self._shape, dtype=self._dtype)
        place = 0
        for view in views:
            count = view.shape[1] if view.ndim == 5 else 1
            found = self.engine.encode_prefix(view.reshape(-1, *view.shape[-3:]))  # (B count, ...)
            rows[:, place : place + count] = found.view(len(index), count, *self._shape)
            place += count
        if epoch + self.draws < self.epochs:
            self._write(epoch, index, rows)
        # A resumed run that has to do it again does not count it again.
        if epoch < self.draws:
            self.engine.spared_prefixes -= len(index) * self._views
        return rows

    def _write(self, epoch: int, index: list[int], rows: Tensor) -> None:
        try:
            for position, row in zip(index, rows, strict=True):
                self._seek(epoch, position)
                self._file.write(row.view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise self._write_error(error) from error
        self._held[self.draw(epoch), index] = True

    def _read(self, epoch: int, index: list[int]) -> Tensor:
        rows = torch.empty(len(index), self._views, *self._shape, dtype=self._dtype)
        for position, row in zip(index, rows, strict=True):
            self._seek(epoch, position)
            self._file.readinto(row.view(torch.uint8).numpy().data)
        return rows

    def _seek(self, epoch: int, position: int) -> None:
        self._file.seek((self.draw(epoch) * self._held.shape[1] + position) * self._bytes)

    def _by_kind(self, rows: Tensor) -> dict[str, Any]:
        """Rows (B, V, ...) as the fields of a batch: (B, ...) each, crops (B, M, ...)."""
        marked = rows.as_subclass(PrefixRows)
        found: dict[str, Any] = {}
        place = 0
        for kind in KINDS:
            count = int(getattr(self.plan, kind))
            found[kind] = None if not count else marked[:, place : place + count] if kind == "crops" else marked[:, place]
            place += count
        return found

    def _write_error(self, error: OSError) -> UserError:
        return write_error(self._folder / "finelens-prefix", error)
