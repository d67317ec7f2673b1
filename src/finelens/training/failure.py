"""Everything needed to look into a step that went wrong: in safetensors and JSON, beside the last good checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Backbone, Batch, Task
from finelens.storage.files import write_json
from finelens.storage.tensors import save_tensors
from finelens.training.checkpoint import task_tensors

STATE_FILE = "state.safetensors"
DESCRIPTION_FILE = "failure.json"


def first_not_finite(named: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity; None where all numbers are finite."""
    if not named:
        return None
    bad = (~torch.isfinite(largest_magnitudes(named))).nonzero()
    return None if not len(bad) else [name for name, tensor in named.items() if tensor.numel()][int(bad[0])]


def largest_magnitudes(named: Mapping[str, Tensor]) -> Tensor:
    """The largest magnitude of each tensor that is not empty, (P,): it carries NaN and infinity, and unlike a sum of squares it cannot overflow."""
    return torch.stack([tensor.detach().abs().amax().float() for tensor in named.values() if tensor.numel()])


def save_failure(
    folder: Path, task: Task, backbone: Backbone, batch: Batch, ids: Sequence[str], facts: Mapping[str, Any], *, late: bool = False
) -> str:
    """Write the views of a batch, the state before its step, and which images they were.

    Args:
        folder: Where to write ``failure.json`` and ``state.safetensors``; made if need be.
        task: The method.
        backbone: The adapted backbone.
        batch: The views that the step was given, or what the frozen blocks made of them.
        ids: Sample ids of the whole store.
        facts: What else is known: reason, epoch, step, seed, numbers logged.
        late: Whether the weights have moved on since; then the state is that of now.

    Returns:
        A sentence for the user: where it is, or why it could not be written.
    """
    views = {"index": batch.index, "weak": batch.weak, "strong": batch.strong, "crops": batch.crops, "centre": batch.centre}
    tensors = {f"batch.{name}": view for name, view in views.items() if view is not None} | task_tensors(task, backbone)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / STATE_FILE, tensors)
        write_json(folder / DESCRIPTION_FILE, {**facts, "sample_ids": [ids[i] for i in batch.index.tolist()]})
    except (OSError, UserError) as error:
        return f"The batch could not be saved ({error})"
    return f"The batch and the state {'after' if late else 'before'} it are in {folder}"
