"""A run's classifier as one program from views to logits: tower, head, temperature, and nothing that depends on how many images come."""

from __future__ import annotations

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
from finelens.protocol import Backbone, ImageTokens
from finelens.runs.model import Model

# Solvers look at so many images at a time; a program is for one such part.
MOST_IMAGES = 1024
INPUT, OUTPUT = "images", "logits"


class Program(nn.Module):
    """Calibrated logits (B, C) of uint8 centre views (B, 3, S, S).

    Args:
        backbone: The adapted image tower.
        head: From the tower's tokens to the method's logits (B, C).
        temperature: What they are divided by.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.backbone, self.head, self.temperature = backbone, head, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C), float32."""
        tokens = self.backbone.encode_image(self.backbone.normalise(images))
        return self.head(tokens).float() / self.temperature


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

    def forward(self, tokens: ImageTokens) -> Tensor:
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

    def forward(self, tokens: ImageTokens) -> Tensor:
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

    def forward(self, tokens: ImageTokens) -> Tensor:
        """Log-probabilities (B, C) of global features, and of pooled tokens where the solver looks at them."""
        rows = self.task.rows(tokens)
        views = rows if isinstance(rows, list) else [rows]
        return self.solver._log_proba(torch.cat([F.normalize(view.float(), dim=-1) for view in views], 1))


def refuse_more_than_a_view(model: Model) -> None:
    """Refuse a model whose answer is no function of one view.

    Raises:
        UserError: It has no image tower, looks at several views, or at further encoders; the message names it.
    """
    if isinstance(model.engine.backbone, FeatureBackbone):
        model.engine.backbone.refuse_pixels()
    if model.task.inference is not None:
        raise UserError(
            f"method {model.method} looks at {model.task.inference.count} further views of each photograph, which an exported program does not cut"
        )
    if model.extra:
        raise UserError(
            f"the run looks at features of {len(model.extra)} further encoders, which an exported program does not have; adapt without --extra"
        )


def program_of(model: Model) -> Program:
    """The program of a model.

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
    return Program(backbone, head, temperature).eval()


@torch.no_grad()
def exported(model: Model) -> ExportedProgram:
    """The program as torch's exporter follows it, for batches of 1 to :data:`MOST_IMAGES` images.

    Raises:
        UserError: The exporter cannot follow the method.
    """
    program = program_of(model)
    size = model.engine.backbone.preprocess.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    batch = Dim("batch", min=1, max=MOST_IMAGES)
    try:
        return torch.export.export(program, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # the exporter raises its own types for each thing that it cannot follow
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"the head of method {model.method} cannot be exported for any number of images ({reason})") from error
