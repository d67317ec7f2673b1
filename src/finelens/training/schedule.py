"""Learning-rate schedule and optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn

from finelens.errors import UserError
from finelens.protocol import Optimisation, Task
from finelens.training.config import TrainingConfig

# Rate of the warm-up epochs (CoOp).
WARMUP_LR = 1e-5


def cosine_lr(step: int, total: int, lr: float, min_lr: float) -> float:
    """``min + (lr - min) (1 + cos(pi t / T)) / 2`` per iteration, no warm-up (microCLIP, DPA).

    Args:
        step: Iteration t, from 0.
        total: All iterations T.
        lr: First value.
        min_lr: Limit at t = T.
    """
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / total))


def learning_rate(step: int, steps: int, config: TrainingConfig, warmup_epochs: int = 0, restart_epochs: int = 0) -> float:
    """The rate of a step: constant and very small during warm-up (CoOp), and the cosine over all epochs, or from one restart to the next (SGDR).

    Args:
        step: Iteration from the start of training, from 0.
        steps: Iterations of an epoch.
        config: Epochs and rates.
        warmup_epochs: Ignored if there are no further epochs.
        restart_epochs: Epochs of a cosine, which is shorter where fewer are left; 0 for one over all.
    """
    if step < warmup_epochs * steps and warmup_epochs < config.epochs:
        return min(WARMUP_LR, config.lr)
    before = step // (restart_epochs * steps) * restart_epochs if restart_epochs else 0
    epochs = min(restart_epochs or config.epochs, config.epochs - before)
    return cosine_lr(step - before * steps, epochs * steps, config.lr, config.min_lr)


def restarts(epoch: int, step: int, optimisation: Optimisation) -> bool:
    """Whether the optimiser forgets its moments before a step of an epoch, as the rate begins anew."""
    return step == 0 and optimisation.restart_epochs > 0 and epoch % optimisation.restart_epochs == 0


def build_optimizer(task: Task, lr: float) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.999; eps 1e-8) or SGD (momentum 0.9) over the task's named groups; switches their gradients on.

    Raises:
        UserError: Nothing is trained.
    """
    groups = []
    for group in task.parameter_groups():
        parameters: list[nn.Parameter] = [parameter.requires_grad_(True) for _, parameter in group["params"]]
        if parameters:
            scale = group.get("lr_scale", 1.0)
            groups.append({"params": parameters, "weight_decay": group["weight_decay"], "lr": lr * scale, "lr_scale": scale})
    if not groups:
        raise UserError("nothing is trained: training.scope=none leaves the image tower as it is, and the method's options leave nothing else")
    if task.optimisation.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
