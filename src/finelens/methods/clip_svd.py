"""CLIP-SVD (Koleilat et al., arXiv 2509.03740): singular values learned from a few labelled images. Documentation: docs/methods/clip-svd.md.

Shapes: B images of a batch, C classes, E joint width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from finelens.classes.heads import ClassHeads
from finelens.classes.templates import check_template, fill
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.prototypes import PrototypeTask
from finelens.protocol import Batch, Cost, NotAvailableError, StepOutput, TargetFeatures, ViewPlan
from finelens.training.config import TrainingConfig
from finelens.training.loss_form import LossForm

# What the paper trains with; the number of epochs is ours, see the page.
TRAINING = {"epochs": 50, "batch_size": 32, "lr": 5e-4, "min_lr": 1e-6, "weight_decay": 0.01, "scope": "svd"}


@dataclass(frozen=True)
class ClipSvdConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        text: ``svd``: the text tower's singular values learn as well; ``templates`` and ``descriptions``: that text head stays as it is.
        template: Prompt of each class where the text tower learns.
        text_batch: Prompts encoded at a time; with more prompts than that, activations are computed twice instead of kept.
    """

    text: Literal["svd", "templates", "descriptions"] = "svd"
    template: str = "a photo of a {}."
    text_batch: int = 64

    def __post_init__(self) -> None:
        check_template(self.template, "method.template")
        require(self.text_batch >= 1, "method.text_batch", "at least 1", self.text_batch)


CONFIG = ClipSvdConfig


def build(engine: Engine, heads: ClassHeads, config: ClipSvdConfig, training: TrainingConfig, seed: int) -> ClipSvd:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return ClipSvd(engine, heads, config, scope=training.scope, weight_decay=training.weight_decay)


class ClipSvd(PrototypeTask):
    """Cross-entropy on the labelled images, through both towers into the singular values of their matrices.

    Attributes:
        tuned: Parameters of the image tower in the scope, by name.
        tuned_text: Those of the text tower; none where it stays as it is, and in a model that was loaded.
        prototypes: Text features of the classes, (C, E): what a model keeps of the text side.
        hints: The labelled images.

    Args:
        engine: Runs the backbone.
        heads: Class names and text heads.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Of everything that learns; singular values are drawn to where they started.

    Raises:
        UserError: The text tower cannot learn.
    """

    engine: Engine
    views = ViewPlan(weak=True, strong=False)
    takes_loss = True
    loss_form = LossForm()

    def __init__(self, engine: Engine, heads: ClassHeads, config: ClipSvdConfig, *, scope: str = "svd", weight_decay: float = 0.01) -> None:
        super().__init__(engine)
        self.config, self.weight_decay = config, weight_decay
        self.needs_text = config.text == "svd"
        self.tuned_text: dict[str, nn.Parameter] = {}
        if self.needs_text and heads.classes is not None:
            self.tuned_text = _tunable_text(engine)
            texts = [fill(config.template, name) for name in heads.classes.names]
            self.tokens = engine.backbone.tokenize(texts).to(engine.device)  # (C, L)
            with torch.no_grad():
                self.embeddings = engine.backbone.embed_tokens(self.tokens)  # (C, L, W_text)
        self.tuned = engine.backbone.tunable(scope)
        self.register_buffer("prototypes", getattr(heads, "templates" if config.text == "svd" else config.text).clone())
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Take the labels.

        Raises:
            UserError: There is none.
        """
        if features.hints is None or not len(features.hints.index):
            raise UserError("no image belongs to a class: the hints say of all images that they are none of these classes")
        self.hints.start(features.hints)

    def subset(self) -> Tensor:
        """The labelled images only."""
        return self.hints.index

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that learns, in both towers."""
        return [{"params": [*self.tuned.items(), *self.tuned_text.items()], "weight_decay": self.weight_decay}]

    def cost(self) -> Cost:
        """1 weak view with gradient."""
        return Cost(no_grad_forwards=0, grad_forwards=1)

    def text_features(self) -> Tensor:
        """Unit-norm features (C, E) of the prompts by the text tower as it is now."""
        backbone, size = self.engine.backbone, self.config.text_batch
        if len(self.tokens) <= size:
            # Weights that the scope computes are computed once.
            with parametrize.cached():
                return backbone.encode_token_embeddings(self.embeddings, self.tokens).to(self.prototypes)
        pairs = zip(self.embeddings.split(size), self.tokens.split(size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([backbone.encode_token_embeddings(*pair) for pair in pairs]).to(self.prototypes)
        return torch.cat([checkpoint(backbone.encode_token_embeddings, *pair, use_reentrant=False) for pair in pairs]).to(self.prototypes)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Cross-entropy of the labelled images of the batch."""
        assert batch.weak is not None
        labels = self.hints.find(batch.index)[1]
        prototypes = self.text_features() if self.tuned_text else self.prototypes
        images = self.engine.encode(batch.weak).global_
        logits = self.logits(images, prototypes)
        loss = self.loss_form.each(logits, labels).mean()
        log: dict[str, float | Tensor] = {"ce": loss, "agreement": (logits.argmax(-1) == labels).float().mean()}
        mixed = self.loss_form.mixed(images, prototypes, labels, self.engine.backbone.logit_scale, epoch, step_in_epoch)
        return StepOutput(loss, log) if mixed is None else StepOutput(loss + mixed, {**log, "mixed": mixed})

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Encode the prompts once more: of the text side a model keeps prototypes."""
        if self.tuned_text:
            self.prototypes = self.text_features()
        return {}


def _tunable_text(engine: Engine) -> dict[str, nn.Parameter]:
    try:
        return engine.backbone.tunable_text("svd")
    except NotAvailableError as error:
        raise UserError(f"clip-svd trains the text tower too, and cannot here ({error}); --set method.text=templates leaves it as it is") from None
