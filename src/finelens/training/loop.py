"""The one training loop. It knows no method: a task gives the loss, the loop does the rest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from finelens.engine.engine import Engine
from finelens.engine.microbatch import BufferSnapshot, is_out_of_memory, until_it_fits
from finelens.errors import Interrupted, UserError
from finelens.images.batches import batches, epoch_order
from finelens.images.view_config import ViewConfig
from finelens.protocol import Batch, ImageStore, StepOutput, TargetFeatures, Task
from finelens.training.checkpoint import Position, load_checkpoint, named_trainable, save_checkpoint, task_tensors
from finelens.training.config import TrainingConfig
from finelens.training.failure import first_not_finite, save_failure
from finelens.training.memory import PseudoLabelMemory
from finelens.training.prefix_cache import PrefixCache
from finelens.training.schedule import build_optimizer, learning_rate, restarts, set_lr
from finelens.training.step_log import StepLog, StepStart


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
        failures: Folder for what a step that went wrong leaves to look into; None to write nothing.
        events_offset: Bytes of the event file when training starts.
        on_images: Called with the number of images of each finished step.
        should_stop: Asked after each step; True saves and stops.
        zero_shot: Class of each image by the unadapted model, (N,), to compare pseudo-labels with; None to leave it.
        alarm: Given how many images of an epoch were trained towards each class; returns a warning, or None.
        look: Encodes the images with the tower as it is; asked by tasks that look between epochs.
    """

    run: RunLog | None = None
    checkpoints: Path | None = None
    failures: Path | None = None
    events_offset: int = 0
    on_images: Callable[[int], object] = lambda count: None
    should_stop: Callable[[], bool] = lambda: False
    zero_shot: Tensor | None = None
    alarm: Callable[[tuple[int, ...]], str | None] = lambda counts: None
    look: Callable[[], TargetFeatures] | None = None


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
        self.prefixes = PrefixCache(engine, len(store), task.views, config) if config.cached_prefix else None
        self.memory = PseudoLabelMemory(len(store), self.hooks.zero_shot)
        self._offset = self.hooks.events_offset
        # Steps that are queued on the device before the numbers of one are read, and looked at: none on a CPU, where nothing is gained by it.
        self.lag = 1 if engine.device.type == "cuda" else 0
        self._unread: deque[StepLog] = deque()

    @property
    def count(self) -> int:
        """Images of an epoch; known once the task is prepared or resumed."""
        subset = self.task.subset()
        return len(self.store) if subset is None else len(subset)

    @property
    def steps(self) -> int:
        """Iterations of an epoch."""
        return math.ceil(self.count / self.config.batch_size)

    def resume(self) -> None:
        """Go on from the checkpoint instead of from the start."""
        assert self.hooks.checkpoints is not None
        self.position = load_checkpoint(self.hooks.checkpoints, self.task, self.engine.backbone, self.optimizer, self.memory.state())
        # The cost of a run is that of one never interrupted; what a resumed one does again is not counted twice.
        self.engine.counts = self.position.no_grad_forwards, self.position.grad_forwards, self.position.spared_prefixes

    def run(self) -> list[Mapping[str, float]]:
        """Train until the last epoch is done, or the task has finished.

        Returns:
            Mean numbers of each epoch finished by this call.

        Raises:
            Interrupted: ``should_stop`` said so; the state is saved.
            UserError: The loss or a gradient is not finite, or memory ran out; the last checkpoint is intact.
        """
        history: list[Mapping[str, float]] = []
        self._follow_first()
        while self.position.epoch < self.config.epochs and not self.task.finished():
            epoch = self.position.epoch
            self._epoch()
            means = {name: total / self.position.images for name, total in self.position.sums.items()} | dict(self.task.end_epoch(epoch))
            means |= self.memory.end_epoch()
            history.append(means)
            warning = self.hooks.alarm(self.position.pseudo_labels)
            if self.hooks.run is not None:
                if warning is not None:
                    self.hooks.run.log("warning", epoch=epoch, message=warning)
                self._offset = self.hooks.run.log("epoch", epoch=epoch, **means)
            self.position = Position(epoch=epoch + 1)
            if self.position.epoch < self.config.epochs and self.task.looks_after(epoch):
                assert self.hooks.look is not None
                self.task.look(self.hooks.look())
            self._follow_first()
            self._save()
        return history

    def _epoch(self) -> None:
        position, plan, drawn = self.position, self.task.views, self.position.epoch
        if restarts(position.epoch, position.step, self.task.optimisation):
            self.optimizer.state.clear()
        preprocess, size = self.engine.backbone.preprocess, self.config.batch_size
        order, subset = epoch_order(self.count, self.seed, position.epoch), self.task.subset()
        if subset is not None:
            order = subset.cpu().numpy()[order]
        if self.prefixes is not None:
            plan, drawn = self.prefixes.missing(position.epoch, order), self.prefixes.draw(position.epoch)
        pinned = self.engine.device.type == "cuda"
        stream = batches(self.store, preprocess, plan, self.views, self.seed, drawn, size, order, start_step=position.step, pinned=pinned)
        # Closed however the epoch ends, so that no thread goes on building views.
        with closing(stream):
            while (batch := self._next(stream)) is not None:
                self._step(batch)
                self.hooks.on_images(len(batch.index))
                if self.engine.processes.any(self.hooks.should_stop()):
                    self._save()
                    # No process ends before the state is saved: the others would be ended with it.
                    self.engine.processes.any(False)
                    raise Interrupted
        self._read()

    def _follow_first(self) -> None:
        self.engine.processes.follow_first(task_tensors(self.task, self.engine.backbone).values())

    def _next(self, stream: Iterator[Batch]) -> Batch | None:
        with self.engine.stopwatch("wait for views"):
            batch = next(stream, None)
        return batch if batch is None or self.prefixes is None else self.prefixes.rows(batch, self.position.epoch)

    def _step(self, batch: Batch) -> None:
        """One training step: forward, backward, gradients averaged over the processes, update, log.

        Inside of the forward the engine divides the rows of the image tower among the processes and into micro-batches. Where memory runs out before
        the update, all up to there is done again with micro-batches of half the size.

        Raises:
            UserError: The loss or a gradient is not finite, or memory ran out with the smallest micro-batches.
        """
        task, engine, optimizer, position = self.task, self.engine, self.optimizer, self.position
        iteration = position.epoch * self.steps + position.step
        optimisation = task.optimisation
        set_lr(optimizer, learning_rate(iteration, self.steps, self.config, optimisation.warmup_epochs, optimisation.restart_epochs))
        start = StepStart(batch, position.epoch, position.step, BufferSnapshot(task), engine.counts)

        def forward_and_backward() -> tuple[StepOutput, dict[str, Tensor]]:
            optimizer.zero_grad(set_to_none=True)
            with engine.stopwatch("method"):
                output = task.step(batch, position.epoch, position.step)
            if not self.lag:
                self._require_finite(start, output.log, output.loss.item())
            with engine.stopwatch("backward"):
                output.loss.backward()
            trained = named_trainable(task)
            if engine.processes.count > 1:
                with engine.stopwatch("exchange"):
                    engine.processes.average_gradients(trained.values())
            gradients = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
            if not self.lag:
                self._require_finite(start, output.log, bad_gradient=first_not_finite(gradients))
            return output, gradients

        with self._memory_may_run_out():
            output, gradients = until_it_fits(forward_and_backward, lambda: self._shrink(batch), lambda: self._undo(start))
            # Not to be repeated: a part of the parameters may have moved.
            with engine.stopwatch("update"):
                optimizer.step()
        self._unread.append(StepLog.of(start, output, gradients if self.lag else {}))
        position.step += 1
        position.images += len(batch.index)
        self._read(self.lag)

    def _shrink(self, batch: Batch) -> bool:
        # A step is repeated by all processes or by none, and only this one knows. What the tower encodes is not part of this: it repeats on its own.
        return self.engine.processes.count == 1 and self.engine.micro.halve(len(batch.index), with_gradient=True)

    def _undo(self, start: StepStart) -> None:
        start.buffers.restore()
        self.engine.counts = start.counts

    @contextmanager
    def _memory_may_run_out(self) -> Iterator[None]:
        """Tell the user where memory ran out, and what helps."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            where = _place(self.position.epoch, self.position.step)
            tried = f", even with micro-batches of {self.engine.micro.size}" if self.engine.processes.count == 1 else ""
            raise UserError(
                f"out of memory in {where}{tried}; the last checkpoint is intact. "
                "Start again with a smaller training.batch_size, or fewer method.crops"
            ) from error

    def _read(self, left: int = 0) -> None:
        """Take in the logs of all steps but the last ``left``.

        Raises:
            UserError: One of them was not finite and has not been looked at before. Nothing has been saved since.
        """
        position = self.position
        while len(self._unread) > left:
            step_log = self._unread.popleft()
            log, index = step_log.log(), step_log.start.batch.index
            self._require_finite(step_log.start, log, log["loss"], step_log.bad_gradient(), late=True)
            labels = None if step_log.labels is None else step_log.labels.read()
            self.memory.remember(index, labels)
            position.pseudo_labels = _added(position.pseudo_labels, labels)
            for name, value in log.items():
                position.sums[name] = position.sums.get(name, 0.0) + value * len(index)

    def _require_finite(
        self, start: StepStart, log: Mapping[str, float | Tensor], loss: float = 0.0, bad_gradient: str | None = None, *, late: bool = False
    ) -> None:
        """Refuse a step whose loss or gradient is not finite, and save what it started from; ``late`` where the weights have moved on since."""
        if math.isfinite(loss) and bad_gradient is None:
            return
        reason = f"the gradient of {bad_gradient} is not finite" if math.isfinite(loss) else f"the loss became {loss}"
        remedy = "Try a lower training.lr, or training.precision=float32"
        message = f"{reason} in {_place(start.epoch, start.step)}; the last checkpoint is intact. {remedy}"
        if self.hooks.failures is not None:
            start.buffers.restore()
            numbers = {name: float(torch.as_tensor(value).detach()) for name, value in log.items() if name != "loss"}
            facts = {"reason": reason, "epoch": start.epoch, "step": start.step, "seed": self.seed, "log": numbers}
            saved = save_failure(self.hooks.failures, self.task, self.engine.backbone, start.batch, self.store.ids, facts, late=late)
            message = f"{message}. {saved}"
        raise UserError(message)

    def _save(self) -> None:
        self._read()
        if self.hooks.checkpoints is not None and self.engine.processes.first:
            self.position.no_grad_forwards, self.position.grad_forwards, self.position.spared_prefixes = self.engine.counts
            memory = self.memory.state()
            save_checkpoint(self.hooks.checkpoints, self.task, self.engine.backbone, self.optimizer, self.position, self._offset, memory)


def _place(epoch: int, step: int) -> str:
    return f"epoch {epoch + 1}, step {step + 1}"


def _added(counts: tuple[int, ...], labels: Tensor | None) -> tuple[int, ...]:
    """Counts by class with those of a batch of labels (B,) added."""
    if labels is None:
        return counts
    more = torch.bincount(labels.cpu(), minlength=len(counts)).tolist()
    return tuple(n + (counts[c] if c < len(counts) else 0) for c, n in enumerate(more))
