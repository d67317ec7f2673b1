"""MARS (2026): label-free adaptation to long tails in two stages, after its equations. Documentation: docs/methods/mars.md.

Shapes: N images of the fit, B images of a batch, C classes, E joint width, W token width, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.methods.parts.student import start_prompts
from finelens.protocol import Batch, Cost, Optimisation, StepOutput, TargetFeatures, ViewPlan
from finelens.solvers import JointGmm
from finelens.solvers.return_rule import ReturnRule
from finelens.training.config import TrainingConfig
from finelens.training.marginal import Marginal
from finelens.training.pseudo_labels import split_by_decay
from finelens.training.state import resize_on_load

TINY = 1e-12
CHUNK = 1024
# Optimiser and epochs of both stages together, as published for the first.
TRAINING = {"epochs": 40, "lr": 3.5e-3, "min_lr": 0.0, "weight_decay": 5e-4}


@dataclass(frozen=True)
class MarsConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        first_stage: Share of the epochs that the first stage gets; 0 leaves it out, and 1 the second.
        prompts: Visual prompt tokens, where the tower has a token sequence.
        beta: Power of the estimated class frequencies in the balance of the second stage.
        momentum: Of the running mean of a class's margins.
        return_rule: Share of the unsupported gains that goes back to the text in the target of the first stage; 1 is the published rule.
        head: Where the adapter starts: mean of each class's ``descriptions`` (templates stand in), or the ensemble of ``templates``.
    """

    # No marginal term: class masses are not drawn anywhere.
    marginal: ClassVar[Marginal] = "none"

    first_stage: float = 0.25
    prompts: int = 16
    beta: float = 1.0
    momentum: float = 0.95
    return_rule: float = 1.0
    head: Literal["descriptions", "templates"] = "descriptions"

    def __post_init__(self) -> None:
        require(0 <= self.first_stage <= 1, "method.first_stage", "between 0 and 1", self.first_stage)
        require(self.prompts >= 0, "method.prompts", "0 (none) or more", self.prompts)
        require(0 <= self.beta < math.inf, "method.beta", "at least 0 and finite", self.beta)
        require(0 <= self.momentum < 1, "method.momentum", "from 0 to below 1", self.momentum)
        require(0 <= self.return_rule <= 1, "method.return_rule", "between 0 and 1", self.return_rule)


CONFIG = MarsConfig


def build(engine: Engine, heads: ClassHeads, config: MarsConfig, training: TrainingConfig, seed: int) -> Mars:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return Mars(engine, heads, config, scope=training.scope, weight_decay=training.weight_decay, epochs=training.epochs, seed=seed)


class Mars(SelfTraining):
    """The method as a task of the training loop.

    Attributes:
        text: Prototypes of the classes, (C, E), constant.
        adapter: What is added to them, (C, E), trained, zero at the start.
        prompts: Visual prompts (P, W), trained; None where the tower takes none.
        target: What the images are trained towards, (N, C): posteriors q in the first stage, those of its model in the second.
        own: Student's logits of the latest weak views, (N, C).
        margins: Running means m of the logit margin of each class, (C,).

    Args:
        engine: Runs the backbone.
        heads: Text heads.
        config: Options.
        scope: Tuning scope of the image tower, which learns in the second stage.
        weight_decay: Of everything that learns.
        epochs: Of both stages.
        seed: Of the prompts.
    """

    config: MarsConfig
    views = ViewPlan(weak=True, strong=True)
    optimisation = Optimisation("sgd")

    def __init__(self, engine: Engine, heads: ClassHeads, config: MarsConfig, *, scope: str, weight_decay: float, epochs: int, seed: int = 0) -> None:
        start = getattr(heads, config.head)
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.first = first_epochs(config.first_stage, epochs)
        self.adapter = nn.Parameter(torch.zeros_like(start))  # (C, E)
        wanted = config.prompts > 0 and engine.backbone.has_token_sequence
        self.prompts = nn.Parameter(start_prompts(engine.backbone, config.prompts, seed).to(start.dtype)) if wanted else None  # (P, W)
        self.register_buffer("text", start.clone())
        self.register_buffer("target", start.new_zeros(0, len(start)))
        self.register_buffer("own", start.new_zeros(0, len(start)))
        self.register_buffer("margins", start.new_zeros(len(start)))
        self.text: Tensor
        self.target: Tensor
        self.own: Tensor
        self.margins: Tensor
        resize_on_load(self, "target", "own")
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """1. What the images are trained towards first: a mixture's posteriors after the return rule, or the text's without a first stage."""
        self.hints.start(features.hints)
        x = features.global_.to(self.text)
        text = (self._scale * x @ self.text.T).softmax(1)
        self.own = self._scale * x @ self.text.T
        self.target = self._returned(features, text) if self.first else text
        if not self.first:
            self._start_second()

    def _returned(self, features: TargetFeatures, text: Tensor) -> Tensor:
        """``q`` (N, C) of the return rule on a mixture in the joint space and the pooled token, given the text posteriors (N, C)."""
        # Statistics are kept in float64, which Apple's GPUs do not know.
        place = torch.device("cpu") if self.engine.device.type == "mps" else self.engine.device
        views = [features.global_.to(place), features.cls.to(place)]
        found = JointGmm().fit_predict_proba(views, prototypes=self.text.to(place), logit_scale=self._scale, hints=features.hints)
        x, text = views[0], text.to(place)
        rule = ReturnRule.learn(x, text, found, share=self.config.return_rule, chunk_size=CHUNK)
        after, returned = rule.apply(x, text, found, chunk_size=CHUNK)
        share = float(returned.mean())
        self.engine.console.detail(
            f"first stage: towards a mixture's answers, of which {100 * share:.1f} % went back to the class that the text names"
        )
        return after.to(self.target)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns takes weight decay, as published."""
        own = [("adapter", self.adapter)] if self.prompts is None else [("adapter", self.adapter), ("prompts", self.prompts)]
        return split_by_decay([*self.tuned.items(), *own], self.weight_decay, lambda name, parameter: True)

    def cost(self) -> Cost:
        """1 weak forward without gradient, 1 strong forward with gradient."""
        return Cost(no_grad_forwards=1, grad_forwards=1)

    def logits(self, features: Tensor) -> Tensor:
        """``s f unit(W + A)^T``, (B, C), of unit-norm features (B, E)."""
        return self._scale * features @ F.normalize(self.text + self.adapter, dim=-1).T

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """2. and 3. The strong view learns the target; in the second stage labels and posteriors are balanced by class."""
        assert batch.weak is not None
        assert batch.strong is not None
        second = epoch >= self.first
        for parameter in self.tuned.values():
            parameter.requires_grad_(second)
        rows = batch.index.to(self.own.device)
        with torch.no_grad():
            weak = self.logits(self.engine.encode_frozen(batch.weak, prompts=self.prompts).global_)
        self.own[rows] = weak
        target = self.hints.clamp(batch.index, self.target[rows])
        labels = target.argmax(1)
        strong = self.logits(self.engine.encode(batch.strong, prompts=self.prompts).global_)
        log: dict[str, float | Tensor] = {"agreement": (strong.argmax(1) == labels).float().mean()}
        if not second:
            loss = F.cross_entropy(strong, target)
            return StepOutput(loss, {"soft_ce": loss, **log}, labels)
        self.margins = running_margins(self.margins, weak, labels, self.config.momentum)
        share = balance(self.target, self.margins, self.config.beta)[labels]
        loss, parts = balanced_loss(strong, target, labels, share)
        return StepOutput(loss, {**parts, "share": share.mean(), **log}, labels)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """After the first stage: its model's posteriors of all images are what the second starts from."""
        if epoch == self.first - 1:
            self.target = self.own.softmax(1)
            self._start_second()
        return {}

    def _start_second(self) -> None:
        everywhere = torch.arange(len(self.target), device=self.target.device)
        labels = self.hints.clamp(everywhere, self.target).argmax(1)
        self.margins = running_margins(torch.zeros_like(self.margins), self.own, labels, 0.0)

    def prediction_state(self) -> dict[str, Tensor]:
        """Prototypes, adapter and prompts; what training remembers stays behind."""
        prompts = {} if self.prompts is None else {"prompts": self.prompts.detach()}
        return {"text": self.text, "adapter": self.adapter.detach(), **prompts}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student on one centre view."""
        return {"logits": self.logits(self.engine.encode_frozen(images, prompts=self.prompts).global_)}


def first_epochs(share: float, epochs: int) -> int:
    """Epochs of the first stage: the share of all, rounded, at least one of a stage that is not left out where there are two."""
    if share in (0, 1):
        return int(share) * epochs
    return min(max(1, round(share * epochs)), max(1, epochs - 1))


def running_margins(margins: Tensor, logits: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """``m_c <- momentum m_c + (1 - momentum) mean_i (z_ic - max_j z_ij)``, i the images of class c, j the other classes; others keep theirs.

    Args:
        margins: (C,).
        logits: z, (B, C).
        labels: (B,).
        momentum: Part of the former mean.
    """
    if logits.shape[1] == 1:
        return margins
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    counts = torch.bincount(labels, minlength=len(margins))
    means = torch.zeros_like(margins).index_add_(0, labels, (own - other).to(margins)) / counts.clamp_min(1)
    return torch.where(counts > 0, torch.lerp(means, margins, momentum), margins)


def balance(posteriors: Tensor, margins: Tensor, beta: float) -> Tensor:
    """``a_c = (r_c^beta + 1 - minmax(m)_c) / 2`` in [0, 1], (C,): how much the posterior counts in the loss of an image of c, beside its label.

    Args:
        posteriors: Of all images, (N, C); r_c is how many are of class c by them, over the largest such number.
        margins: m, (C,).
        beta: Power of r.
    """
    counts = torch.bincount(posteriors.argmax(1), minlength=len(margins)).to(margins)
    frequent = (counts / counts.max().clamp_min(1)) ** beta
    spread = margins.max() - margins.min()
    return (frequent + 1 - (margins - margins.min()) / spread.clamp_min(TINY)) / 2


def balanced_loss(logits: Tensor, teacher: Tensor, labels: Tensor, share: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
    """``mean_i a_i KL(teacher_i, softmax z_i) + (1 - a_i) CE(z_i, y_i)`` and its parts.

    Args:
        logits: z, (B, C).
        teacher: Posteriors (B, C).
        labels: y, (B,).
        share: a, (B,).
    """
    kl = F.kl_div(logits.log_softmax(1), teacher, reduction="none").sum(1)
    ce = F.cross_entropy(logits, labels, reduction="none")
    return (share * kl + (1 - share) * ce).mean(), {"kl": kl.mean(), "ce": ce.mean()}
