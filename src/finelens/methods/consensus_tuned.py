"""The answer of consensus teaches the image tower, and consensus answers again on what the tower has become. Ours.

Documentation: docs/methods/consensus-tuned.md. Shapes: N images of the fit, B images of a batch, C classes, E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.extra_views import ExtraConfig, ExtraTask
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.solver import solver_options
from finelens.protocol import Batch, Cost, FeatureRows, Optimisation, StepOutput, TargetFeatures, Task, ViewPlan
from finelens.solvers import Consensus
from finelens.solvers.assignments import centred
from finelens.solvers.columns import centred_views
from finelens.solvers.neighbours import evenly_spread, top_neighbours
from finelens.solvers.presence import asked_neighbours, neighbour_agreement
from finelens.training.config import TrainingConfig
from finelens.training.pseudo_labels import is_matrix, split_by_decay
from finelens.training.state import resize_on_load

# Few steps over the whole tower for each answer it is taught: with many of them it learns the mistakes of the answer by heart.
LESSON, LESSONS = 2, 3
TRAINING = {"epochs": LESSON * LESSONS, "lr": 5e-5, "min_lr": 0.0, "scope": "all"}

TINY = 1e-12
# What the student must keep for its say: of the teacher's answers, of how far neighbours agree (as even masses must), of how varied answers are.
SAME_CLASS, AGREEMENT, VARIETY = 0.5, 0.95, 0.9
CHUNK = 1024


@dataclass(frozen=True)
class TaughtConfig(ExtraConfig):
    """Options of the method beside those of ``consensus``, which are those of both of its fits.

    Attributes:
        lesson: Epochs between two fits of the student.
        student: ``decided``: it answers beside the teacher where label-free signals say so; ``always`` and ``never`` say what they do.
    """

    lesson: int = LESSON
    student: Literal["decided", "always", "never"] = "decided"

    def __post_init__(self) -> None:
        require(self.lesson >= 1, "method.lesson", "at least 1", self.lesson)
        require(not self.others, "method.extra", "[] or cls where the tower is trained", list(self.extra))
        super().__post_init__()


CONFIG = solver_options(Consensus, TaughtConfig)


def of_teacher(options: Any) -> Any:
    """The options of ``consensus`` among those of this method."""
    solver = solver_options(Consensus, ExtraConfig)
    return solver(**{field.name: getattr(options, field.name) for field in fields(solver)})


def without_training(options: Any) -> tuple[str, Any]:
    """What answers where the start is too weak to train on: the teacher alone."""
    return "consensus", of_teacher(options)


def build(engine: Engine, heads: ClassHeads, config: Any, training: TrainingConfig, seed: int) -> ConsensusTuned:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return ConsensusTuned(engine, heads, config, epochs=training.epochs, scope=training.scope, weight_decay=training.weight_decay, seed=seed)


class ConsensusTuned(Task):
    """The method as a task of the training loop. Numbers in comments are the steps on the method's page.

    Attributes:
        tuned: Parameters of the image tower in the scope, by name.
        teacher: Consensus on the features of the unadapted tower.
        student: Consensus on those of the tuned one.
        taught: Teacher's posteriors of the images of the fit, (N, C).
        target: Posteriors that the tower learns now, (N, C): the teacher's in the first lesson, the student's of the lesson before in the others.
        near: Their neighbours in the unadapted features, (N, k), int64.
        sizes: Root mean squares of the log-posteriors of teacher and student over the fit, centred over the classes, (2,).
        share: Of the student in the answer: 0 or 0.5.

    Args:
        engine: Runs the backbone.
        heads: Text heads.
        config: Options.
        epochs: Of all lessons together.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of the matrices that the scope includes.
        seed: Of the run.
    """

    views = ViewPlan(weak=False, strong=False, centre=True)
    asks_unadapted = True

    def __init__(self, engine: Engine, heads: ClassHeads, config: Any, *, epochs: int, scope: str, weight_decay: float, seed: int = 0) -> None:
        super().__init__(engine)
        self.config, self.weight_decay = config, weight_decay
        self.lessons = math.ceil(epochs / config.lesson)
        self.optimisation = Optimisation(restart_epochs=config.lesson)
        self.tuned = engine.backbone.tunable(scope)
        # The plain names are a second opinion beside the head that the teacher has.
        start = heads.templates.clone()
        self.teacher, self.student = (ExtraTask(engine, heads, config.new_solver(seed), config) for _ in range(2))
        self.register_buffer("text", start)  # (C, E)
        self.register_buffer("taught", start.new_zeros(0, len(start)))
        self.register_buffer("target", start.new_zeros(0, len(start)))
        self.register_buffer("near", torch.zeros(0, 0, dtype=torch.int64))
        self.register_buffer("sizes", start.new_ones(2))
        self.register_buffer("share", start.new_zeros(()))
        self.text: Tensor
        self.taught: Tensor
        self.target: Tensor
        self.near: Tensor
        self.sizes: Tensor
        self.share: Tensor
        resize_on_load(self, "taught", "target", "near")
        self.hints = HintMemory()
        self._signals: Signals | None = None
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """1. Fit the teacher."""
        self.teacher.prepare(features)
        for line in self.teacher.notes():
            self.engine.console.detail(line)
        self.hints.start(features.hints)
        self.taught = self.teacher.target_log_proba.to(self.text).exp()
        self.target = self.taught.clone()
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
        """Matrices with weight decay, scales and biases without."""
        return split_by_decay(list(self.tuned.items()), self.weight_decay, is_matrix)

    def cost(self) -> Cost:
        """1 forward with gradient, and 1 without after each lesson."""
        return Cost(no_grad_forwards=0, grad_forwards=1, after=self.lessons)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """2. Cross-entropy with the posterior of this lesson on the centre view."""
        assert batch.centre is not None
        target = self.hints.clamp(batch.index, self.target[batch.index.to(self.target.device)])  # (B, C)
        logits = self.engine.backbone.logit_scale * self.engine.encode(batch.centre).global_ @ self.text.T  # (B, C)
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        return StepOutput(loss, {"loss": loss.detach()}, target.argmax(1))

    def looks_after(self, epoch: int) -> bool:
        """At the end of a lesson."""
        return (epoch + 1) % self.config.lesson == 0

    def look(self, features: TargetFeatures) -> None:
        """3. What the student answers is the next lesson."""
        self.student.prepare(features)
        self.target = self.student.target_log_proba.to(self.text).exp()

    def end_training(self, features: TargetFeatures) -> None:
        """3, 4. Fit the student, and take it into the answer, or leave it out, by what it says of the images of the fit."""
        self.student.prepare(features)
        taught = self.taught.clamp_min(torch.finfo(self.taught.dtype).tiny).log()
        own = self.student.target_log_proba.to(self.text)
        self.sizes = torch.stack([_size(taught), _size(own)])
        both = self._joined(taught, own, 0.5)
        self._signals = signals_of(taught.argmax(1), own.argmax(1), both.argmax(1), self.near, len(self.text))
        wanted = self.config.student
        self.share.fill_(0.5 if (self._signals.good if wanted == "decided" else wanted == "always") else 0.0)

    def notes(self) -> list[str]:
        """What was decided of the student, and why."""
        said = "the student answers beside its teacher" if self.share else "the student is left out, the answer is the teacher's"
        asked = "" if self.config.student == "decided" else f" (method.student={self.config.student})"
        return [] if self._signals is None else [f"{said}{asked}: {self._signals}"]

    def _joined(self, teacher: Tensor, student: Tensor, share: float | Tensor) -> Tensor:
        """Logits (B, C) of both, each over its size, at the size of the teacher's."""
        own, other = self.sizes
        joined: Tensor = (1 - share) * centred(teacher) + share * own / other * centred(student)
        return joined

    def prediction_state(self) -> dict[str, Tensor]:
        """The state of both fits; what training remembers stays behind."""
        parts = {"teacher": self.teacher, "student": self.student}
        states = {f"{part}.{name}": tensor for part, task in parts.items() for name, tensor in task.prediction_state().items()}
        return {"sizes": self.sizes, "share": self.share, **states}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student alone, of uint8 centre views."""
        return {"logits": self.student.predict_logits(images)["logits"].to(self.text)}

    @torch.no_grad()
    def predict_beside(self, images: Tensor, unadapted: FeatureRows) -> dict[str, Tensor]:
        """5. Teacher and student together, where the student was taken."""
        teacher = self.teacher.predict_logits(unadapted)["logits"].to(self.text)
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
        return self.same >= SAME_CLASS and self.both >= AGREEMENT * self.teacher and self.varied >= VARIETY * self.varied_before

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
