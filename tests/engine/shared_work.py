"""What the tests of several processes compute: in the test itself as one process, and by ``python -m tests.engine.shared_work`` as two."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from finelens.engine.distributed import ALONE, Processes, join
from finelens.errors import UserError
from finelens.images.load import decode_limits, load
from finelens.methods.lafter.config import LafterConfig
from finelens.methods.lafter.task import Lafter
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.methods.registry import find_method
from finelens.runs.fit import fit
from finelens.runs.predict import predict_store
from finelens.training.checkpoint import named_trainable
from finelens.training.loop import Hooks
from finelens.training.schedule import build_optimizer
from tests.children import Child
from tests.methods.tiny import random_batch, random_heads, tiny_engine
from tests.toy import CLASSES, QUIET, TRAINING, hints_for, options_for, pictures, prepare_toy
from tests.training.tasks import make_engine

# 24 images in batches of 7, 7, 7 and 3: shares of 3 and 4, and of 1 and 2.
BATCH = 7
# All that train, and one of each other kind of work.
METHODS = (*TRAINING, "zero-shot", "wca", "stata")
GRADIENTS = ("microclip", "lafter", "past the tower")
# Their features have rounding of their own, which AdamW's first steps turn into steps of full size where a gradient is all but zero.
LR = 1e-4


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What ``torchrun`` sets, as many threads as the tests have, and no features from before."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own |= {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "FINELENS_CACHE_GB": 0}
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(*commands: list[Any]) -> list[Child]:
    """Processes that are to meet, each with the arguments of its own for Python."""
    port, count = free_port(), len(commands)
    return [Child(command, environment(rank, count, port)) for rank, command in enumerate(commands)]


def train(method: str, backbone: Path, processes: Processes) -> dict[str, Tensor]:
    """Losses of every step, logits of every image, features before training and parameters after it."""
    epochs = 5 if find_method(method).few_shot else 2
    config, prepared = prepare_toy(backbone, method, options=options_for(method, batch_size=BATCH, lr=LR, epochs=epochs))
    prepared.engine.processes = processes
    store = load(pictures(), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    losses: list[float] = []
    step = prepared.task.step

    def recorded(*arguments: Any) -> Any:
        output = step(*arguments)
        losses.append(output.loss.item())
        return output

    prepared.task.step = recorded
    fitted = fit(prepared, store, config, QUIET, Hooks(), hints=hints_for(method, len(store), len(CLASSES)))
    logits = predict_store(fitted.model, store, QUIET, features=fitted.features)["logits"]
    learned = {f"parameter.{name}": p.detach().contiguous().clone() for name, p in named_trainable(prepared.task).items()}
    counts = torch.tensor([prepared.engine.no_grad_forwards, prepared.engine.grad_forwards])
    return {"losses": torch.tensor(losses, dtype=torch.float64), "logits": logits, "looks": fitted.looks, "forwards": counts, **learned}


def gradients(kind: str, folder: Path, processes: Processes) -> dict[str, Tensor]:
    """Loss and gradients of one step in float64: of a whole tower, of visual prompts, or of a parameter reached through the tower and past it."""
    if kind == "past the tower":
        return _past_the_tower(processes)
    engine = tiny_engine(folder, torch.float64)
    engine.processes = processes
    heads = random_heads(3, torch.float64)
    if kind == "microclip":
        task: Any = MicroClip(engine, heads, MicroClipConfig(crops=2, marginal="uniform"), scope="all").double()
    else:
        task = Lafter(engine, heads, LafterConfig(marginal="uniform"), scope="norm").double()
    build_optimizer(task, 1e-3)
    output = task.step(random_batch(5, 2), 0, 0)
    output.loss.backward()
    named = named_trainable(task)
    processes.average_gradients(named.values())
    return {"loss": output.loss.detach(), **{name: p.grad.contiguous() for name, p in named.items() if p.grad is not None}}


def _past_the_tower(processes: Processes) -> dict[str, Tensor]:
    engine = make_engine()
    engine.backbone.double()
    engine.processes = processes
    scale: Any = engine.backbone.scale.requires_grad_(True)
    views = random_batch(5, 0).weak
    assert views is not None
    loss = (engine.encode(views).cls.softmax(0) * scale.exp()).square().sum()
    loss.backward()
    processes.average_gradients([scale])
    return {"loss": loss.detach(), "scale": scale.grad}


def collectives(processes: Processes) -> dict[str, Tensor]:
    """What the exchanges give, from numbers that differ by process."""
    rank = float(processes.rank)
    share = processes.divide(5)
    assert share is not None
    own = torch.arange(5.0)[share.own]
    followed = torch.full((2, 3), rank).T
    processes.follow_first([followed])
    weight = torch.full((2,), rank, requires_grad=True)
    (rank * weight).sum().backward()
    processes.average_gradients([weight, torch.zeros(1)])
    assert weight.grad is not None
    return {
        "gathered": processes.gather(own[:, None], share),
        "integers": processes.gather(own.long(), share),
        "followed": followed.contiguous(),
        "mean": weight.grad,
        "any": torch.tensor([processes.any(rank == 1), processes.any(False)]),
        "total": torch.tensor(processes.total(processes.rank + 1)),
        "first": torch.tensor(processes.first_value(rank + 7)),
    }


def main(out: Path, backbone: Path, small: Path) -> None:
    torch.set_num_threads(1)
    processes = join("cpu")
    assert processes != ALONE
    processes.check_same({"options": "equal"})
    with pytest.raises(UserError, match="process 1 has other photographs than process 0"):
        processes.check_same({"options": "equal", "photographs": str(processes.rank)})
    found = {f"collectives/{name}": tensor for name, tensor in collectives(processes).items()}
    for kind in GRADIENTS:
        found |= {f"gradients.{kind}/{name}": tensor for name, tensor in gradients(kind, small, processes).items()}
    for method in METHODS:
        found |= {f"{method}/{name}": tensor for name, tensor in train(method, backbone, processes).items()}
    save_file(found, out / f"{processes.rank}.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
