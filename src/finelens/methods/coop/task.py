"""CoOp (Zhou, Yang, Loy, Liu, IJCV 2022, arXiv 2109.01134): the words around the class name are learned vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.coop.config import CoopConfig
from finelens.methods.coop.context import Prompts, encode_prompts, initial_context, place_context
from finelens.methods.parts.prototypes import PrototypeTask
from finelens.methods.registry import all_methods
from finelens.protocol import Batch, Cost, NotAvailableError, Optimisation, StepOutput, TargetFeatures, ViewPlan
from finelens.training.loss_form import LossForm
from finelens.training.state import resize_on_load

# What the loop uses for these methods unless the user says otherwise (CoOp and UPL).
TRAINING = {"epochs": 50, "batch_size": 32, "lr": 2e-3, "min_lr": 0.0, "weight_decay": 5e-4, "scope": "none"}


class Coop(PrototypeTask):
    """Learns the context of the prompts on features of labelled images; the image tower stays as it is.

    Attributes:
        context: (S, 1 or C, M, W_text), trained; empty in a model that was loaded.
        prototypes: Mean of the S sets of text features, (C, E): mean of the S logits.
        index: Positions of the images that training visits, ascending, (K,).
        features: Their unit-norm features, (K, E).
        labels: Their classes, (K,).

    Args:
        engine: Runs the backbone.
        heads: Class names, and the shape of the prototypes.
        config: Options.
        weight_decay: Of the context.
        seed: Seed of the first context.
        sets: Prompt sets S that are trained side by side.
    """

    engine: Engine
    views = ViewPlan(weak=False, strong=False)
    optimisation = Optimisation("sgd", warmup_epochs=1)
    needs_text = True
    takes_loss = True
    loss_form = LossForm()

    def __init__(self, engine: Engine, heads: ClassHeads, config: CoopConfig, *, weight_decay: float, seed: int, sets: int = 1) -> None:
        super().__init__(engine)
        self.config = config
        self.weight_decay = weight_decay
        self.prompts: Prompts | None = None
        context = torch.zeros(0)
        if heads.classes is not None:
            backbone, names = engine.backbone, heads.classes.names
            context = torch.stack([initial_context(backbone, config, len(names), seed, s) for s in range(sets)])
            self.prompts = place_context(backbone, names, config, context.shape[2])
        self.context = nn.Parameter(context)
        self.register_buffer("prototypes", heads.templates.clone())
        self.register_buffer("index", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("features", heads.templates[:0].clone())
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.index: Tensor
        self.features: Tensor
        self.labels: Tensor
        resize_on_load(self, "index", "features", "labels")
        self.to(engine.device)

    def training_set(self, features: TargetFeatures) -> tuple[Tensor, Tensor]:
        """Positions (K,), ascending, and classes (K,) of the images to learn from: here the hinted ones."""
        assert features.hints is not None
        known = features.hints.label >= 0
        return features.hints.index[known], features.hints.label[known]

    def prepare(self, features: TargetFeatures) -> None:
        """Choose the images to learn from and keep their features.

        Raises:
            UserError: There is none.
        """
        index, labels = self.training_set(features)
        if not len(index):
            raise UserError("no image belongs to a class: the hints say of all images that they are none of these classes")
        self.index, self.labels = index.to(self.index.device), labels.to(self.labels.device)
        self.features = features.global_[self.index.to(features.global_.device)].to(self.prototypes)

    def subset(self) -> Tensor:
        """The labelled images only."""
        return self.index

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The context."""
        return [{"params": [("context", self.context)], "weight_decay": self.weight_decay}]

    def cost(self) -> Cost:
        """No forward of the image tower: features are kept."""
        return Cost(0, 0)

    def text_features(self) -> Tensor:
        """Features (S, C, E) of the prompts with the current context."""
        assert self.prompts is not None
        return encode_prompts(self.engine.backbone, self.prompts, self.context, self.config.text_batch).to(self.prototypes)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Cross-entropy of the batch under every prompt set. The sum over sets trains each as if it were alone."""
        rows = torch.searchsorted(self.index, batch.index.to(self.index.device))
        labels = self.labels[rows]
        images, texts = self.features[rows], self.text_features()
        logits = self.logits(images, texts)  # (S, B, C)
        losses = torch.stack([self.loss_form.each(one, labels).mean() for one in logits])
        right = (logits.mean(0).argmax(-1) == labels).float().mean()
        log: dict[str, float | Tensor] = {"ce": losses.mean(), "agreement": right}
        scale = self.engine.backbone.logit_scale
        terms = [term for own in texts if (term := self.loss_form.mixed(images, own, labels, scale, epoch, step_in_epoch)) is not None]
        if not terms:
            return StepOutput(losses.sum(), log)
        mixed = torch.stack(terms)
        return StepOutput(losses.sum() + mixed.sum(), {**log, "mixed": mixed.mean()})

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Encode the prompts once more: a model is a set of prototypes."""
        self.prototypes = self.text_features().mean(0)
        return {}


def check_backbone(engine: Engine, heads: ClassHeads, method: str, scope: str) -> None:
    """Refuse what cannot work before anything else is done.

    Raises:
        UserError: The text tower cannot be differentiated, or a tuning scope is asked for.
    """
    if scope != "none":
        raise UserError(f"training.scope has no effect: method {method} learns the text side and leaves the image tower as it is; leave it out")
    if heads.classes is None:
        return
    try:
        engine.backbone.embed_tokens(engine.backbone.tokenize(["a"]).to(engine.device))
    except NotAvailableError as error:
        others = ", ".join(other.name for other in all_methods() if other.adapts and other.name not in ("coop", "upl"))
        raise UserError(
            f"method {method} learns text context, and the text tower of {engine.backbone.name} takes none ({error}); use a CLIP model with a "
            f"standard text tower, or another --method: {others}"
        ) from error
