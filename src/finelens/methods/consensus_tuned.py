"""The answer of consensus teaches the image tower, and both answer together. Ours. Documentation: docs/methods/consensus-tuned.md.

Shapes: N images of the fit, B images of a batch, C classes, E joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.extra_views import ExtraConfig, ExtraTask
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.methods.parts.solver import solver_options
from finelens.protocol import Batch, Cost, FeatureRows, StepOutput, TargetFeatures, ViewPlan
from finelens.solvers import Consensus
from finelens.solvers.assignments import centred
from finelens.solvers.neighbours import evenly_spread, top_neighbours
from finelens.solvers.presence import asked_neighbours, neighbour_agreement
from finelens.solvers.views import centred_views
from finelens.training.config import TrainingConfig
from finelens.training.marginal import Marginal
from finelens.training.pseudo_labels import PseudoLabels, is_matrix, ranking, self_training_loss, split_by_decay
from finelens.training.state import resize_on_load

TINY = 1e-12
# What the student must keep for its say: of the teacher's answers, and of how varied these are.
SAME_CLASS, VARIETY = 0.5, 0.9
CHUNK = 1024


@dataclass(frozen=True)
class TaughtConfig(ExtraConfig):
    """Options of the method beside those of ``consensus``, which are the teacher's.

    Attributes:
        teacher_share: Share of the teacher's posterior in a pseudo-label, beside the student's own of the weak view.
        marginal_weight: Weight of the term that draws the batch marginal to the teacher's class masses.
        student: ``decided``: it answers beside the teacher where label-free signals say so; ``always`` and ``never`` say what they do.
    """

    # The class masses are the teacher's, and stay as they are.
    marginal: ClassVar[Marginal] = "uniform"

    teacher_share: float = 0.5
    marginal_weight: float = 1.0
    student: Literal["decided", "always", "never"] = "decided"

    def __post_init__(self) -> None:
        require(0 <= self.teacher_share <= 1, "method.teacher_share", "between 0 and 1", self.teacher_share)
        require(0 <= self.marginal_weight < math.inf, "method.marginal_weight", "at least 0 and finite", self.marginal_weight)
        require(not self.others, "method.extra", "[] or cls where the tower is trained", list(self.extra))
        super().__post_init__()


CONFIG = solver_options(Consensus, TaughtConfig)


def of_teacher(options: Any) -> Any:
    """The options of ``consensus`` among those of this method."""
    solver = solver_options(Consensus, ExtraConfig)
    return solver(**{field.name: getattr(options, field.name) for field in fields(solver)})


def build(engine: Engine, heads: ClassHeads, config: Any, training: TrainingConfig, seed: int) -> ConsensusTuned:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return ConsensusTuned(engine, heads, config, scope=training.scope, weight_decay=training.weight_decay, seed=seed)


class ConsensusTuned(SelfTraining):
    """The method as a task of the training loop. Numbers in comments are the steps on the method's page.

    Attributes:
        teacher: Consensus on the features of the unadapted tower.
        anchors: Student's class vectors (C, E), trained, used with unit rows.
        taught: Teacher's posteriors of the images of the fit, (N, C).
        own: Student's logits of their latest weak views, (N, C).
        near: Their neighbours in the unadapted features, (N, k), int64.
        sizes: Root mean squares of the teacher's log-posteriors and of the student's logits over the fit, centred over the classes, (2,).
        share: Of the student in the answer: 0 or 0.5.

    Args:
        engine: Runs the backbone.
        heads: Text heads.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of the anchors (and of matrices that the scope includes).
        seed: Of the run.
    """

    views = ViewPlan(weak=True, strong=True)
    asks_unadapted = True
    takes_loss = True

    def __init__(self, engine: Engine, heads: ClassHeads, config: Any, *, scope: str, weight_decay: float, seed: int = 0) -> None:
        start = getattr(heads, config.head)
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.teacher = ExtraTask(engine, heads, config.new_solver(seed), config)
        self.anchors = nn.Parameter(start.clone())  # (C, E)
        self.register_buffer("taught", start.new_zeros(0, len(start)))
        self.register_buffer("own", start.new_zeros(0, len(start)))
        self.register_buffer("near", torch.zeros(0, 0, dtype=torch.int64))
        self.register_buffer("sizes", start.new_ones(2))
        self.register_buffer("share", start.new_zeros(()))
        self.taught: Tensor
        self.own: Tensor
        self.near: Tensor
        self.sizes: Tensor
        self.share: Tensor
        resize_on_load(self, "taught", "own", "near")
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """1. Fit the teacher, and start the student at the means of the images by the teacher's posteriors."""
        self.hints.start(features.hints)
        self.teacher.prepare(features)
        for line in self.teacher.notes():
            self.engine.console.detail(line)
        self.taught = self.teacher.target_log_proba.to(self.anchors).exp()
        self.class_prior.prior = self.taught.mean(0)
        x = features.global_.to(self.anchors)
        with torch.no_grad():
            self.anchors.copy_(F.normalize(self.taught.T @ x + self.anchors, dim=1))
            self.own = self.logits(x)
        self.near = self._neighbours(features)

    def _neighbours(self, features: TargetFeatures) -> Tensor:
        """Neighbours (N, k) that the agreement is asked of, by the mean cosine of both centred views of the unadapted tower."""
        views = [F.normalize(view, dim=1) for view in (features.global_, features.cls)]
        x, widths = torch.cat(views, 1), [view.shape[1] for view in views]
        looks = centred_views(x, x.mean(0, dtype=torch.float64), widths)
        rows = evenly_spread(len(x), self.config.bank, x.device)
        near = top_neighbours(looks, looks[rows], self.config.neighbours, chunk_size=CHUNK, rows=rows)[1]
        return rows[asked_neighbours(near, self.taught.shape[1])]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Norms without weight decay, anchors with."""
        return split_by_decay([*self.tuned.items(), ("anchors", self.anchors)], self.weight_decay, is_matrix)

    def cost(self) -> Cost:
        """1 weak forward without gradient, 1 strong forward with gradient."""
        return Cost(no_grad_forwards=1, grad_forwards=1)

    def logits(self, features: Tensor) -> Tensor:
        """``s f A^T``, (B, C), of unit-norm features (B, E)."""
        return self._scale * features @ F.normalize(self.anchors, dim=-1).T

    @torch.no_grad()
    def pseudo_labels(self, index: Tensor, weak: Tensor) -> PseudoLabels:
        """2. Label images by the mean of the teacher's posterior and the student's; a label that one of the two doubts counts less.

        Args:
            index: Positions of the images in the store, (B,).
            weak: Unit-norm features of their weak views, (B, E).
        """
        rows = index.to(self.taught.device)
        logits, taught = self.logits(weak), self.taught[rows]
        self.own[rows] = logits
        own = logits.softmax(1)
        posterior = torch.lerp(own, taught, self.config.teacher_share)
        labels = posterior.argmax(1)
        return self.hints.apply_to(index, PseudoLabels(labels, ranking(own, labels) * ranking(taught, labels), posterior))

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """3. Weighted cross-entropy and marginal term on the strong view."""
        assert batch.weak is not None
        assert batch.strong is not None
        pseudo = self.pseudo_labels(batch.index, self.engine.encode_frozen(batch.weak).global_)
        strong = self.engine.encode(batch.strong).global_
        found = self_training_loss(self.logits(strong), pseudo, self.class_prior, self.config.marginal_weight, form=self.loss_form)
        loss, log = self.with_mixtures(*found, strong, self.anchors, pseudo.labels, epoch, step_in_epoch)
        return StepOutput(loss, log, pseudo.labels)

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """4. Take the student into the answer, or leave it out, by what it says of the images of the fit."""
        self.sizes = torch.stack([_size(self._log_taught()), _size(self.own)])
        signals, wanted = self.signals(), self.config.student
        self.share.fill_(0.5 if (signals.good if wanted == "decided" else wanted == "always") else 0.0)
        return {"teacher_agreement": signals.same, "neighbour_agreement": signals.both}

    def signals(self) -> Signals:
        """What is known of the student without labels."""
        both = self._joined(self._log_taught(), self.own, 0.5)
        return signals_of(self.taught.argmax(1), self.own.argmax(1), both.argmax(1), self.near, len(self.anchors))

    def notes(self) -> list[str]:
        """What was decided of the student, and why."""
        said = "the student answers beside its teacher" if self.share else "the student is left out, the answer is the teacher's"
        asked = "" if self.config.student == "decided" else f" (method.student={self.config.student})"
        return [f"{said}{asked}: {self.signals()}"]

    def _log_taught(self) -> Tensor:
        return self.taught.clamp_min(torch.finfo(self.taught.dtype).tiny).log()

    def _joined(self, teacher: Tensor, student: Tensor, share: float | Tensor) -> Tensor:
        """Logits (B, C) of both, each over its size, at the size of the teacher's."""
        own, other = self.sizes
        joined: Tensor = (1 - share) * centred(teacher) + share * own / other * centred(student)
        return joined

    def prediction_state(self) -> dict[str, Tensor]:
        """The teacher's state and the student's anchors; what training remembers stays behind."""
        own = {"anchors": self.anchors.detach(), "sizes": self.sizes, "share": self.share}
        return own | {f"teacher.{name}": tensor for name, tensor in self.teacher.prediction_state().items()}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student alone, of uint8 centre views."""
        return {"logits": self.logits(self.engine.encode_frozen(images).global_)}

    @torch.no_grad()
    def predict_beside(self, images: Tensor, unadapted: FeatureRows) -> dict[str, Tensor]:
        """5. Teacher and student together, where the student was taken."""
        teacher = self.teacher.predict_logits(unadapted)["logits"].to(self.anchors)
        if not self.share:
            return {"logits": teacher}
        student = self.predict_logits(images)["logits"]
        return {"logits": self._joined(teacher, student, self.share), "teacher": teacher, "student": student}


@dataclass(frozen=True)
class Signals:
    """What is known of a student without labels.

    Attributes:
        same: Share of the images for which teacher and student name the same class.
        teacher: Neighbour agreement (kappa) of the teacher's answers.
        both: That of the joint ones.
        varied: Joint answers are as varied as so many classes of equal size.
        varied_before: The teacher's.
    """

    same: float
    teacher: float
    both: float
    varied: float
    varied_before: float

    @property
    def good(self) -> bool:
        """Whether the joint answers keep to the teacher, to the neighbours and to its variety."""
        return self.same >= SAME_CLASS and self.both >= self.teacher and self.varied >= VARIETY * self.varied_before

    def __str__(self) -> str:
        return (
            f"both name the same class for {100 * self.same:.0f} % of the photographs, neighbours agree by {self.both:.2f} "
            f"({self.teacher:.2f} without it), the answers are as varied as {self.varied:.1f} classes of equal size ({self.varied_before:.1f})"
        )


def signals_of(teacher: Tensor, student: Tensor, both: Tensor, near: Tensor, classes: int) -> Signals:
    """Signals from the labels (N,) of teacher, student and both together, and the neighbours (N, k)."""
    agreements = [neighbour_agreement(labels, near, classes) for labels in (teacher, both)]
    varied = [_variety(labels, classes) for labels in (both, teacher)]
    return Signals(float((teacher == student).double().mean()), *agreements, *varied)


def _variety(labels: Tensor, classes: int) -> float:
    """``exp`` of the entropy of the shares of the classes among labels (N,)."""
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def _size(logits: Tensor) -> Tensor:
    """Root mean square of logits (N, C) after centring over the classes."""
    return centred(logits).square().mean().sqrt().clamp_min(TINY)
