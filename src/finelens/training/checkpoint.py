"""The state of an unfinished run, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from finelens.core.options import from_mapping
from finelens.errors import UserError
from finelens.protocol import Backbone, Task
from finelens.storage.tensors import load_metadata, load_tensors, save_tensors

CHECKPOINT_FILE = "last.safetensors"
META_KEY = "finelens"


@dataclass
class Position:
    """Where training stands and what the current epoch has summed up so far.

    Attributes:
        epoch: Current epoch, from 0.
        step: Next step of this epoch, from 0.
        images: Images seen in this epoch.
        sums: Sums over those images of every logged number.
        no_grad_forwards: Images encoded without gradient since the run started.
        grad_forwards: Images encoded with gradient since the run started.
        spared_prefixes: See ``Engine.spared_prefixes``; it may be negative for a while.
        pseudo_labels: Images of this epoch trained towards each class, in class order, up to the last one seen.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    no_grad_forwards: int = 0
    grad_forwards: int = 0
    spared_prefixes: int = 0
    pseudo_labels: tuple[int, ...] = ()


def named_trainable(task: Task) -> dict[str, nn.Parameter]:
    """All trained parameters by unique name, in optimiser order."""
    named: dict[str, nn.Parameter] = {}
    for group in task.parameter_groups():
        for name, parameter in group["params"]:
            if name in named:
                raise ValueError(f"two trained parameters are called {name!r}")
            named[name] = parameter
    return named


def task_tensors(task: Task, backbone: Backbone) -> dict[str, Tensor]:
    """Everything that a step depends on besides the batch and the frozen weights: ``task.*``, ``fitted.*`` and ``parameter.*``."""
    tensors: dict[str, Tensor] = {f"task.{k}": v for k, v in task.state_dict().items()}
    tensors |= {f"fitted.{k}": v for k, v in backbone.fitted_state().items()}
    return tensors | {f"parameter.{name}": parameter.detach() for name, parameter in named_trainable(task).items()}


def save_checkpoint(
    folder: Path,
    task: Task,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
    position: Position,
    events_offset: int,
    memory: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that ``load_checkpoint`` needs, atomically; ``memory`` is what the loop itself remembers."""
    tensors = task_tensors(task, backbone) | {f"memory.{name}": tensor for name, tensor in (memory or {}).items()}
    for name, parameter in named_trainable(task).items():
        # A parameter that has had no gradient yet has no state.
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / CHECKPOINT_FILE, tensors, {META_KEY: json.dumps({**asdict(position), "events_offset": events_offset})})


def load_checkpoint(
    folder: Path, task: Task, backbone: Backbone, optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor] | None = None
) -> Position:
    """Restore a run in place; the tensors of ``memory`` are filled.

    Returns:
        Position to go on from.

    Raises:
        UserError: No checkpoint, or one that belongs to another task.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run has no checkpoint to resume from")
    tensors = load_tensors(path)
    try:
        return _restore(path, tensors, task, backbone, optimizer, memory or {})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not fit this run ({' '.join(str(error).split())[:200]}); restore it from a copy, or start a new run") from error


def _restore(
    path: Path, tensors: dict[str, Tensor], task: Task, backbone: Backbone, optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor]
) -> Position:
    groups: dict[str, dict[str, Tensor]] = {"task": {}, "fitted": {}, "parameter": {}, "optimizer": {}, "memory": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        groups[kind][name] = value
    named = named_trainable(task)
    if set(named) != set(groups["parameter"]):
        raise UserError(
            f"{path} holds other trained parameters than this configuration trains; resume with the configuration the run was started with"
        )
    task.load_state_dict(groups["task"])
    with torch.no_grad():
        for name, buffer in backbone.fitted_state().items():
            buffer.copy_(groups["fitted"][name])
        for name, parameter in named.items():
            parameter.copy_(groups["parameter"][name])
    for name, tensor in memory.items():
        tensor.copy_(groups["memory"][name])
    for key, value in groups["optimizer"].items():
        kind, _, name = key.partition(".")
        # The step counter stays on the host; the moments live where their parameter does.
        parameter = named[name]
        optimizer.state[parameter][kind] = value.clone() if kind == "step" else torch.empty_like(parameter).copy_(value)
    return _metadata(path)[0]


def read_events_offset(folder: Path) -> int:
    """Length of ``events.jsonl`` in bytes when the checkpoint was written; 0 where there is no checkpoint."""
    path = folder / CHECKPOINT_FILE
    return _metadata(path)[1] if path.is_file() else 0


def _metadata(path: Path) -> tuple[Position, int]:
    """Position and length of ``events.jsonl`` that a checkpoint names."""
    try:
        fields = json.loads(load_metadata(path)[META_KEY])
        offset = fields.pop("events_offset")
        position = from_mapping(Position, fields, "")
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{path} is not the checkpoint of a run ({error}); restore it from a copy, or start a new run") from error
    counts = (position.epoch, position.step, position.images, position.no_grad_forwards, position.grad_forwards, offset)
    sensible = all(type(count) is int and count >= 0 for count in counts) and type(position.spared_prefixes) is int
    if not sensible or not all(type(total) in (int, float) for total in position.sums.values()):
        raise UserError(f"{path} is not the checkpoint of a run (its numbers make no sense); restore it from a copy, or start a new run")
    return position, offset
