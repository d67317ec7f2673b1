"""The log of a step, taken from the device without making it wait.

To ask a GPU for a number is to wait until it has done everything before it, and then it has nothing to do. So numbers are copied while it goes on,
and read when the next step has been queued behind them. On a CPU they are there at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.engine.microbatch import BufferSnapshot
from finelens.protocol import Batch, StepOutput
from finelens.training.failure import largest_magnitudes


def number(value: Tensor) -> float | Tensor:
    """A scalar to log: its value on a CPU; elsewhere the tensor itself, whose value the loop reads later."""
    return value.item() if value.device.type == "cpu" else value.detach()


class HostCopy:
    """A tensor on its way to the host.

    Args:
        tensor: Read as it is now, whatever becomes of it; on a CPU it must not change.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._arrived = tensor.detach(), None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Tensor:
        """The tensor on the host, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.cpu()


@dataclass(frozen=True)
class StepStart:
    """What a step starts from.

    Attributes:
        batch: Its views.
        epoch: Its epoch, from 0.
        step: Its number in the epoch, from 0.
        buffers: The task's buffers before it.
        counts: The engine's counts before it.
    """

    batch: Batch
    epoch: int
    step: int
    buffers: BufferSnapshot
    counts: tuple[int, int, int]


@dataclass(frozen=True)
class StepLog:
    """Log of one step, finished as far as the host is concerned.

    Attributes:
        start: What the step started from.
        plain: Numbers that the host knew at once.
        names: Names of the others.
        numbers: Their values, (K,).
        gradients: Names of the trained parameters that are to be checked.
        magnitudes: The largest entry of each gradient, (P,).
        labels: Pseudo-labels (B,), or None.
    """

    start: StepStart
    plain: dict[str, float]
    names: tuple[str, ...]
    numbers: HostCopy | None
    gradients: tuple[str, ...]
    magnitudes: HostCopy | None
    labels: HostCopy | None

    @classmethod
    def of(cls, start: StepStart, output: StepOutput, gradients: Mapping[str, Tensor]) -> StepLog:
        """Start the copies of a step's numbers; ``gradients`` are those that have not been checked."""
        log = {name: number(value) if isinstance(value, Tensor) else value for name, value in [("loss", output.loss), *output.log.items()]}
        late = {name: _wide(value).reshape(()) for name, value in log.items() if isinstance(value, Tensor)}
        checked = {name: gradient for name, gradient in gradients.items() if gradient.numel()}
        return cls(
            start,
            {name: value for name, value in log.items() if not isinstance(value, Tensor)},
            tuple(late),
            HostCopy(torch.stack(list(late.values()))) if late else None,
            tuple(checked),
            HostCopy(largest_magnitudes(checked)) if checked else None,
            None if output.pseudo_labels is None else HostCopy(output.pseudo_labels),
        )

    def log(self) -> dict[str, float]:
        """All numbers by name, ``loss`` among them."""
        late = {} if self.numbers is None else dict(zip(self.names, self.numbers.read().tolist(), strict=True))
        return {**self.plain, **late}

    def bad_gradient(self) -> str | None:
        """Name of the first gradient that is not finite."""
        if self.magnitudes is None:
            return None
        bad = (~torch.isfinite(self.magnitudes.read())).nonzero()
        return self.gradients[int(bad[0])] if len(bad) else None


def _wide(value: Tensor) -> Tensor:
    """A logged number in float64, which Apple's GPUs do not know."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
