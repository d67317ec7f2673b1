"""Learning-rate schedule and optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn

from finelens.protocol import Task


def cosine_lr(step: int, total: int, lr: float, min_lr: float) -> float:
    """``min + (lr - min) (1 + cos(pi t / T)) / 2`` per iteration, no warm-up (microCLIP, DPA).

    Args:
        step: Iteration t, from 0.
        total: All iterations T.
        lr: First value.
        min_lr: Limit at t = T.
    """
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / total))


def build_optimizer(task: Task, lr: float) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999; eps 1e-8) over the task's named groups; switches their gradients on."""
    groups = []
    for group in task.parameter_groups():
        parameters: list[nn.Parameter] = [parameter.requires_grad_(True) for _, parameter in group["params"]]
        if parameters:
            scale = group.get("lr_scale", 1.0)
            groups.append({"params": parameters, "weight_decay": group["weight_decay"], "lr": lr * scale, "lr_scale": scale})
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
