"""A run's classifier as one program from views to logits: tower, head, temperature, and nothing that depends on how many images come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from finelens.backbones.features_only import FeatureBackbone
from finelens.errors import UserError
from finelens.exporting.heads import LinearHead, NotAHeadError, linear_head
from finelens.methods.parts.frozen import HeadTask
from finelens.methods.parts.solver import SolverTask
from finelens.protocol import Backbone, TargetFeatures
from finelens.runs.model import Model

# Solvers look at so many images at a time; a program is for one such part.
MOST_IMAGES = 1024
INPUT, OUTPUT = "images", "logits"


def input_names(towers: int) -> list[str]:
    """Names of the inputs of a program of so many image towers."""
    return [INPUT, *(f"{INPUT}_{k}" for k in range(2, towers + 1))]


class Program(nn.Module):
    """Calibrated logits (B, C) of uint8 centre views (B, 3, S, S).

    Args:
        backbone: The adapted image tower.
        further: Further encoders, in the order in which the method looks at them.
        head: From the towers' features to the method's logits (B, C).
        temperature: What they are divided by.
    """

    def __init__(self, backbone: Backbone, further: Sequence[Backbone], head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.backbone, self.head, self.temperature = backbone, head, temperature
        self.further = nn.ModuleList(further)

    def forward(self, images: Tensor, *further: Tensor) -> Tensor:
        """Logits (B, C), float32; each further encoder has views of the same photographs in its own geometry."""
        tokens = self.backbone.encode_image(self.backbone.normalise(images))
        encoders: Iterable[Any] = self.further
        rows = tuple(encoder.encode_image(encoder.normalise(views)).global_ for encoder, views in zip(encoders, further, strict=True))
        return self.head(TargetFeatures(tokens.global_, tokens.cls, extra=rows)).float() / self.temperature


class CosineHead(nn.Module):
    """``s <f, w_c> + b``.

    Args:
        weights: (C, E), unit-norm rows.
        scale: s.
        bias: b.
    """

    def __init__(self, weights: Tensor, scale: float, bias: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights.clone())
        self.weights: Tensor
        self.scale, self.bias = scale, bias

    def forward(self, tokens: TargetFeatures) -> Tensor:
        """Logits (B, C) of global features."""
        return self.scale * tokens.global_.float() @ self.weights.T + self.bias


class AffineHead(nn.Module):
    """``W f + b``, already divided by the temperature.

    Args:
        head: W and b.
    """

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.register_buffer("weight", head.weight)
        self.register_buffer("bias", head.bias)
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, tokens: TargetFeatures) -> Tensor:
        """Logits (B, C) of global features."""
        return F.linear(tokens.global_.float(), self.weight, self.bias)


class SolverHead(nn.Module):
    """Log-probabilities of a fitted solver; what it keeps of the images of the fit is part of the program.

    Args:
        task: The solver's task, fitted.
    """

    def __init__(self, task: SolverTask) -> None:
        super().__init__()
        object.__setattr__(self, "task", task)
        self.task: SolverTask
        state = {name: getattr(task, name).detach().clone() for name in task.solver.state_names}
        classes, width = task.prototypes.shape
        self.solver: Any = task.solver.load_state(state, classes=classes, features=width)

    def forward(self, tokens: TargetFeatures) -> Tensor:
        """Log-probabilities (B, C) of global features, and of pooled tokens and further encoders where the solver looks at them."""
        rows = self.task.rows(tokens)
        views = rows if isinstance(rows, list) else [rows]
        return self.solver._log_proba(torch.cat([F.normalize(view.float(), dim=-1) for view in views], 1))


def refuse_more_than_a_view(model: Model) -> None:
    """Refuse a model whose answer is no function of one view.

    Raises:
        UserError: It has no image tower, or looks at several views; the message names it.
    """
    if isinstance(model.engine.backbone, FeatureBackbone):
        model.engine.backbone.refuse_pixels()
    if model.task.inference is not None:
        raise UserError(
            f"method {model.method} looks at {model.task.inference.count} further views of each photograph, which an exported program does not cut; "
            "docs/export.md says what can be exported"
        )


def program_of(model: Model, further: Sequence[Backbone] = ()) -> Program:
    """The program of a model, and of the further encoders that it looks at.

    Raises:
        UserError: The method's answer is no function of one view's feature, or there is no image tower; the message names it.
    """
    refuse_more_than_a_view(model)
    backbone, task, temperature = model.engine.backbone, model.task, model.temperature
    if isinstance(task, SolverTask):
        if task.config.return_rule:
            raise UserError(f"method.return_rule of method {model.method} is not part of an exported program; adapt with method.return_rule=0")
        head: nn.Module = SolverHead(task)
    elif isinstance(task, HeadTask):
        head = CosineHead(task.head, backbone.logit_scale, backbone.logit_bias)
    else:
        try:
            head, temperature = AffineHead(linear_head(model, torch.zeros(0, backbone.dim))), 1.0
        except NotAHeadError as error:
            raise UserError(
                f"the answer of method {model.method} is more than a head on the global feature ({error}), and cannot be exported; see docs/export.md"
            ) from error
    return Program(backbone, further, head, temperature).eval()


@torch.no_grad()
def exported(model: Model, further: Sequence[Backbone] = ()) -> ExportedProgram:
    """The program as torch's exporter follows it, for batches of 1 to :data:`MOST_IMAGES` images.

    Args:
        model: The model.
        further: The further encoders that it looks at, in their order.

    Raises:
        UserError: The exporter cannot follow the method, or one of the encoders.
    """
    program = program_of(model, further)
    sides = [backbone.preprocess.image_size for backbone in (model.engine.backbone, *further)]
    examples = tuple(torch.zeros(2, 3, side, side, dtype=torch.uint8) for side in sides)
    batch = {0: Dim("batch", min=1, max=MOST_IMAGES)}
    beside = [(batch,) * len(further)] if further else []
    try:
        return torch.export.export(program, examples, dynamic_shapes=(batch, *beside), strict=False)
    except Exception as error:  # the exporter raises its own types for each thing that it cannot follow
        reason = str(error).strip().split("\n", 1)[0]
        towers = "".join(f", beside {backbone.name}," for backbone in further)
        raise UserError(
            f"the head of method {model.method}{towers} cannot be exported for any number of images ({reason}); see docs/export.md"
        ) from error
