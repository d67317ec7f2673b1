"""The one training loop. It knows no method: a task gives the loss, the loop does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from finelens.config import TrainingConfig
from finelens.errors import UserError
from finelens.images.batches import batches
from finelens.images.views import ViewConfig
from finelens.protocol import Batch, ImageStore, Task
from finelens.training.checkpoint import Position, load_checkpoint, save_checkpoint
from finelens.training.engine import Engine
from finelens.training.schedule import build_optimizer, cosine_lr, set_lr


class Interrupted(Exception):
    """Training was asked to stop; the state is saved."""


class RunLog(Protocol):
    """Where events go; ``runs.RunFolder`` is one."""

    def log(self, event: str, **fields: Any) -> int:
        """Append one event; returns the bytes of the event file so far."""


@dataclass(frozen=True)
class Hooks:
    """What surrounds the loop.

    Attributes:
        run: Receives events; None to log nothing.
        checkpoints: Folder of the checkpoint; None to write none.
        events_offset: Bytes of the event file when training starts.
        on_images: Called with the number of images of each finished step.
        should_stop: Asked after each step; True saves and stops.
    """

    run: RunLog | None = None
    checkpoints: Path | None = None
    events_offset: int = 0
    on_images: Callable[[int], object] = lambda count: None
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """Trains a prepared task to its last epoch.

    Args:
        task: The method, after ``prepare`` (fresh) or as constructed (to resume).
        engine: Runs the backbone.
        store: Unlabelled images.
        config: Optimisation.
        views: Options of the views.
        seed: Seed of order and views.
        hooks: Logging, checkpoints, progress, interruption.
    """

    def __init__(
        self, task: Task, engine: Engine, store: ImageStore, config: TrainingConfig, views: ViewConfig, *, seed: int, hooks: Hooks | None = None
    ) -> None:
        self.task, self.engine, self.store, self.config, self.views, self.seed = task, engine, store, config, views, seed
        self.hooks = hooks or Hooks()
        self.optimizer = build_optimizer(task, config.lr)
        self.position = Position()
        self._offset = self.hooks.events_offset
        self.steps = math.ceil(len(store) / config.batch_size)

    def resume(self) -> None:
        """Go on from the checkpoint instead of from the start."""
        assert self.hooks.checkpoints is not None
        self.position = load_checkpoint(self.hooks.checkpoints, self.task, self.engine.backbone, self.optimizer)
        # The cost of a run is that of one never interrupted; what a resumed one does again is not counted twice.
        self.engine.no_grad_forwards, self.engine.grad_forwards = self.position.no_grad_forwards, self.position.grad_forwards

    def run(self) -> list[Mapping[str, float]]:
        """Train until the last epoch is done.

        Returns:
            Mean numbers of each epoch finished by this call.

        Raises:
            Interrupted: ``should_stop`` said so; the state is saved.
            UserError: The loss is not finite; the last checkpoint is intact.
        """
        history: list[Mapping[str, float]] = []
        while self.position.epoch < self.config.epochs:
            epoch = self.position.epoch
            self._epoch()
            means = {name: total / self.position.images for name, total in self.position.sums.items()} | dict(self.task.end_epoch(epoch))
            history.append(means)
            if self.hooks.run is not None:
                self._offset = self.hooks.run.log("epoch", epoch=epoch, **means)
            self.position = Position(epoch=epoch + 1)
            self._save()
        return history

    def _epoch(self) -> None:
        position, plan = self.position, self.task.views
        preprocess, size = self.engine.backbone.preprocess, self.config.batch_size
        stream = batches(self.store, preprocess, plan, self.views, self.seed, position.epoch, size, start_step=position.step)
        # Closed however the epoch ends, so that no thread goes on building views.
        with closing(stream):
            while (batch := self._next(stream)) is not None:
                self._guarded_step(batch)
                self.hooks.on_images(len(batch.index))
                if self.hooks.should_stop():
                    self._save()
                    raise Interrupted

    def _guarded_step(self, batch: Batch) -> None:
        try:
            self._step(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise UserError(
                f"out of memory in epoch {self.position.epoch + 1}, step {self.position.step + 1}; the last checkpoint is intact. "
                "Start again with a smaller training.batch_size, or fewer method.crops"
            ) from error

    def _next(self, stream: Iterator[Batch]) -> Batch | None:
        with self.engine.stopwatch("wait for views"):
            return next(stream, None)

    def _step(self, batch: Batch) -> None:
        position, config = self.position, self.config
        set_lr(self.optimizer, cosine_lr(position.epoch * self.steps + position.step, config.epochs * self.steps, config.lr, config.min_lr))
        self.optimizer.zero_grad(set_to_none=True)
        stopwatch = self.engine.stopwatch
        with stopwatch("method"):
            output = self.task.step(batch, position.epoch, position.step)
        loss = output.loss.item()
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} in epoch {position.epoch + 1}, step {position.step + 1}; the last checkpoint is intact. "
                "Try a lower training.lr, or training.precision=float32"
            )
        with stopwatch("backward"):
            output.loss.backward()
        with stopwatch("update"):
            self.optimizer.step()
        position.step += 1
        position.images += len(batch.index)
        for name, value in {"loss": loss, **output.log}.items():
            position.sums[name] = position.sums.get(name, 0.0) + value * len(batch.index)

    def _save(self) -> None:
        if self.hooks.checkpoints is not None:
            self.position.no_grad_forwards, self.position.grad_forwards = self.engine.no_grad_forwards, self.engine.grad_forwards
            save_checkpoint(self.hooks.checkpoints, self.task, self.engine.backbone, self.optimizer, self.position, self._offset)


def _out_of_memory(error: RuntimeError) -> bool:
    """The CPU allocator has no error type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
