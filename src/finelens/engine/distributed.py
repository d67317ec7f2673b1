"""Several processes, one result: each encodes a part of every batch, and all compute the loss of the whole batch.

The image tower costs nearly everything, so only its rows are divided. The features of all rows are then gathered on every process. Whatever a method
makes of them (pseudo-labels, memories, marginals, prototypes, the loss) is computed from the whole batch everywhere, as in one process.

Gradients follow one rule, that of DistributedDataParallel: they are averaged over the processes. The gather passes each process the gradient of its
own rows times the number of processes. So a parameter that is reached through the tower has, on average, the sum of the parts; one that is reached
from the gathered features has the same gradient everywhere, which the average leaves; one that is reached both ways has both.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from finelens.core.launch import launched
from finelens.errors import UserError

# The longest that one process may be ahead of another, which may have hours of images to encode where this one found its own in the cache. A process
# that is gone is noticed at once.
PATIENCE = timedelta(days=1)
# The longest that the processes wait for each other to start; nothing can interrupt this wait.
START = timedelta(minutes=5)


@dataclass(frozen=True)
class Share:
    """How rows are divided among the processes: in their order, each process a run of them.

    Attributes:
        own: The rows of this process.
        counts: Number of rows of each process.
    """

    own: slice
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them. With one process nothing is divided and nothing is exchanged.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: of several GPUs, the one of its number on its machine.

        Raises:
            UserError: One GPU is asked for by number, there are too few, or the device cannot exchange.
        """
        if self.count == 1 or device.type == "cpu":
            return device
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if device.type != "cuda" or device.index is not None:
            raise UserError(f"device {str(device)!r} serves one process, and there are {self.count}; use --device cuda or cpu, or leave torchrun out")
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; start as many processes as GPUs")
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def divide(self, rows: int, multiple: int = 1) -> Share | None:
        """Divide rows among the processes.

        Args:
            rows: Their number.
            multiple: Where a part may end, but for the last.

        Returns:
            The shares; None where this process does all of them: it is alone, or not every process would get a row.
        """
        units = -(-rows // multiple)
        if self.count == 1 or units < self.count:
            return None
        ends = [min(rows, (rank + 1) * units // self.count * multiple) for rank in range(self.count)]
        starts = [0, *ends[:-1]]
        return Share(slice(starts[self.rank], ends[self.rank]), tuple(end - start for start, end in zip(starts, ends, strict=True)))

    def gather(self, own: Tensor, share: Share) -> Tensor:
        """The rows of all processes, (N, ...), from those of this one, (n, ...); differentiable, see the head of this module."""
        rows: Tensor = _Gather.apply(own, self, share)
        return rows

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradient of each parameter by its mean over the processes. All processes have gradients of the same parameters."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for kind in sorted({(gradient.dtype, gradient.device) for gradient in gradients}, key=str):
            alike = [gradient for gradient in gradients if (gradient.dtype, gradient.device) == kind]
            flat = torch.cat([gradient.flatten() for gradient in alike])
            with _together():
                dist.all_reduce(flat)
            flat /= self.count
            for gradient, mean in zip(alike, flat.split([gradient.numel() for gradient in alike]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process. All wait for each other here."""
        if self.count == 1:
            return flag
        found = torch.tensor([float(flag)])
        with _together():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def total(self, count: int) -> int:
        """Sum over the processes."""
        if self.count == 1:
            return count
        found = torch.tensor([count])
        with _together():
            dist.all_reduce(found)
        return int(found.item())

    def first_value(self, value: float) -> float:
        """The number that the first process has; for what is measured and not computed."""
        if self.count == 1:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        self.follow_first([found])
        return found.item()

    @torch.no_grad()
    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Fill the tensors with their values in the first process, so that no rounding can ever pull the processes apart."""
        if self.count == 1:
            return
        for tensor in tensors:
            with _together():
                dist.broadcast(values := tensor.contiguous(), 0)
            if values is not tensor:
                tensor.copy_(values)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Make sure that all processes work on the same.

        Args:
            facts: What must be equal, by what it is called; the same names in all processes.

        Raises:
            UserError: It is not; the message names the first that differs. All processes raise it.
        """
        if self.count == 1:
            return
        digests = torch.tensor([list(hashlib.sha256(fact.encode()).digest()) for fact in facts.values()], dtype=torch.uint8)  # (F, 32)
        everyone = self._exchange(digests[None], (1,) * self.count)  # (K, F, 32)
        for place, name in enumerate(facts):
            for rank in range(1, self.count):
                if not torch.equal(everyone[rank, place], everyone[0, place]):
                    raise UserError(f"process {rank} has other {name} than process 0; start every process with the same command, over the same files")

    def _exchange(self, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Rows of all processes; the transport wants parts of equal size."""
        most = max(counts)
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])]) if len(own) < most else own.contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


ALONE = Processes()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, share: Share) -> Tensor:
        ctx.processes, ctx.share = processes, share
        return processes._exchange(own.detach(), share.counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.processes.count * gradient[ctx.share.own], None, None


def join(device: str) -> Processes:
    """Meet the other processes of this run, where ``torchrun`` started several. May be called again.

    Args:
        device: What the run asks for; GPUs exchange among themselves (NCCL), everything else over the network (gloo).

    Raises:
        UserError: This torch cannot, or the others do not come.
    """
    rank, count = launched()
    if count == 1:
        return ALONE
    if not dist.is_available():
        raise UserError("this build of torch runs in one process only; start without torchrun")
    if not dist.is_initialized():
        with _together():
            store, _, _ = next(dist.rendezvous("env://", rank, count, timeout=START))
            store.set_timeout(START)
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            # Left to the end of the interpreter, the transport's threads end it with an abort now and then.
            atexit.register(_leave)
            dist.init_process_group(backend, store=dist.PrefixStore("finelens", store), rank=rank, world_size=count, timeout=PATIENCE)
    return Processes(rank, count)


def met() -> Processes:
    """The processes that this one has met with :func:`join`; it alone where it has met none."""
    return Processes(*launched()) if dist.is_available() and dist.is_initialized() else ALONE


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What the transport raises when another process is gone is no fault of this one."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"another process of this run has ended or does not answer ({reason}); what it said stands above. "
            "Nothing that was saved is lost: finelens resume goes on from the last checkpoint"
        ) from error
