"""Out of memory: the same gradient from smaller micro-batches.

What fills the memory is the activations that the image tower keeps for the backward pass. When they do not fit, the tower encodes micro-batches one
after another and keeps nothing; the loss is computed on the features of the whole batch, so terms over the batch (marginals, memories) are exact for
every method; the backward pass then computes the activations of each micro-batch again and accumulates its gradient. That is one more forward of the
images with gradient, and the gradient of the whole batch up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from finelens.core.private_torch import own_buffers

T = TypeVar("T")

# Neither the CPU allocator nor Apple's has an error type of its own.
_MESSAGES = ("can't allocate memory", "not enough memory", "backend out of memory")


class OutOfMemoryError(MemoryError):
    """Memory ran out with micro-batches of one image, so that nothing is left to halve."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and any(m in str(error) for m in _MESSAGES))


def until_it_fits(work: Callable[[], T], shrink: Callable[[], bool], undo: Callable[[], object] = lambda: None) -> T:
    """Repeat work with less memory until it succeeds.

    Args:
        work: What to do.
        shrink: Makes the next attempt smaller; False if it cannot.
        undo: Puts back what a failed attempt has changed.

    Raises:
        OutOfMemoryError: It does not fit however small.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
        # Outside of the handler: the error holds the frames that hold the tensors.
        undo()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not shrink():
            raise OutOfMemoryError(reason)


class MicroBatch:
    """How many images the tower takes at once.

    Attributes:
        size: Images of one forward.
        recompute: Whether activations are computed again for the backward pass instead of kept.
        say: Told of every change, in one line.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.recompute = False
        self.say: Callable[[str], object] = lambda line: None

    def halve(self, images: int, *, with_gradient: bool) -> bool:
        """Use less memory from now on.

        Args:
            images: Images that did not fit.
            with_gradient: Whether their activations were kept.

        Returns:
            Whether there was anything left to lower.
        """
        before = min(self.size, images)
        if with_gradient and not self.recompute:
            # Until now the whole batch was kept, whatever the size of a forward.
            self.recompute = True
            self.size = min(before, max(1, images // 2))
        elif before > 1:
            self.size = before // 2
        else:
            return False
        self.say(f"out of memory: going on with micro-batches of {self.size}; results stay the same up to rounding, a step takes longer")
        return True


class BufferSnapshot:
    """The buffers of a task before a step, to repeat the step from.

    Holds references, so it costs nothing: buffers that a step replaces are put back; rows that it writes in place it must write again.
    """

    def __init__(self, module: nn.Module) -> None:
        self._saved: list[tuple[nn.Module, str, Tensor | None]] = [(m, name, b) for m in module.modules() for name, b in own_buffers(m).items()]

    def restore(self) -> None:
        """Put the buffers back."""
        for module, name, buffer in self._saved:
            own_buffers(module)[name] = buffer
