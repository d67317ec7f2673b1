"""NoLA: label-free prompt tuning with descriptions and a second, self-supervised encoder. Numbers in comments are the steps on the method's page."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from finelens.engine.engine import Engine
from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.labelling import LabellingNetwork, select_confident, with_hints
from finelens.methods.nola.second_encoder import second_features
from finelens.methods.nola.stopping import AgreementStop
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.student import Student
from finelens.protocol import Batch, Cost, StepOutput, TargetFeatures, ViewPlan
from finelens.training.pseudo_labels import PseudoLabels
from finelens.training.state import resize_on_load


class Nola(Student):
    """The method as a task of the training loop.

    Attributes:
        labeller: The labelling network, frozen after :meth:`prepare`.
        posteriors: What it makes of every image, (N, C), in store order.

    Args:
        engine: Runs the backbone.
        start: Text head W (C, E), unit rows.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of everything that the loop trains.
        seed: Seed of the labelling network, the prompts and the held-out images.
    """

    config: NolaConfig

    def __init__(self, engine: Engine, start: Tensor, config: NolaConfig, *, scope: str = "norm", weight_decay: float = 0.1, seed: int = 0) -> None:
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        self.views = ViewPlan(weak=False, strong=True, centre=config.stop == "agreement")
        self.labeller = LabellingNetwork(start.dtype)
        self.register_buffer("posteriors", start.new_zeros(0, len(start)))
        self.posteriors: Tensor
        resize_on_load(self, "posteriors")
        self.stopping = AgreementStop(config.patience)
        self.to(engine.device)

    def prepare(self, features: TargetFeatures) -> None:
        """Steps 2 to 4: choose the confident images, train the labelling network on them, and label every image once."""
        super().prepare(features)
        classes, images = len(self.head), len(features.global_)
        with torch.no_grad():
            zero_shot = cosine_logits(self.engine, features.global_, self.head).softmax(-1)  # (N, C)
        kept, labels = with_hints(*select_confident(zero_shot, self.config.keep(images, classes)), features.hints)  # 2
        second = second_features(self.config.second_spec, self.engine, features).to(self.head.dtype)  # (N, D2)
        console = self.engine.console
        absent = classes - len(labels.unique())
        console.detail(f"labelling network: {len(kept)} of {images} images teach it; {absent} of {classes} classes have none")
        self.labeller.fit(second[kept], labels, classes, epochs=self.config.labelling_epochs, seed=self.seed, console=console)  # 3
        with torch.no_grad():
            self.posteriors = self.labeller(second).softmax(-1)  # 4
        hints = HintMemory().to(self.posteriors.device)
        hints.start(features.hints)
        self.posteriors = hints.clamp(torch.arange(images), self.posteriors)
        self.class_prior.start(self.posteriors)
        if self.config.stop == "agreement":
            self.stopping.hold_out(images, self.config.held_out, self.seed)

    def cost(self) -> Cost:
        """1 strong view with gradient; held-out images take their centre view without gradient instead."""
        share = self.stopping.share
        return Cost(no_grad_forwards=share, grad_forwards=1 - share)

    def pseudo_labels(self, index: Tensor) -> PseudoLabels:
        """What the frozen labelling network made of the images at positions ``index`` (B,)."""
        posterior = self.posteriors[index]
        return PseudoLabels(posterior.argmax(-1), torch.ones_like(posterior[:, 0]), posterior)

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Step 5: the student learns the labels on the strong view."""
        assert batch.strong is not None
        index, strong = batch.index, batch.strong
        if self.config.stop == "agreement":
            held_out = self.stopping.held_out[index].cpu()
            index, strong = index[~held_out], strong[~held_out]
            if held_out.any():
                self._compare(batch, held_out)
        if not len(index):
            # A small last batch can be held out as a whole. A gradient of zero would still let the decay move what is trained; this gives none.
            return StepOutput(torch.zeros((), device=self.head.device, requires_grad=True))
        pseudo = self.pseudo_labels(index)
        loss, log = self.loss(self.logits(strong), pseudo)
        # The labels of held-out images are known as well; they are only not learned.
        return StepOutput(loss, log, self.pseudo_labels(batch.index).labels)

    @torch.no_grad()
    def _compare(self, batch: Batch, held_out: Tensor) -> None:
        assert batch.centre is not None
        student = self.logits(batch.centre[held_out], frozen=True).argmax(-1)
        self.stopping.see(student, self.pseudo_labels(batch.index[held_out]).labels)

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Compare the agreement on held-out images with earlier epochs."""
        return {**super().end_epoch(epoch), **self.stopping.end_epoch()}

    def finished(self) -> bool:
        """Whether student and teacher no longer agree more; never with ``stop=epochs``."""
        return self.stopping.finished()
