from dataclasses import dataclass

import torch
from torch import nn

from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.protocol import Cost, StepOutput, ViewPlan
from finelens.training.marginal import Marginal
from finelens.training.pseudo_labels import PseudoLabels, is_matrix, self_training_loss, split_by_decay


@dataclass(frozen=True)
class ToyConfig:
    marginal: Marginal = "uniform"


CONFIG = ToyConfig


class ToySelfTraining(SelfTraining):
    views = ViewPlan(weak=True, strong=True)

    def __init__(self, engine, start, config, **training):
        super().__init__(engine, start, config, **training)
        self.head = nn.Parameter(start.clone())
        self.hints = HintMemory()
        self.to(engine.device)

    def prepare(self, features):
        self.hints.start(features.hints)

    def parameter_groups(self):
        return split_by_decay([*self.tuned.items(), ("head", self.head)], self.weight_decay, is_matrix)

    def step(self, batch, epoch, step_in_epoch):
        with torch.no_grad():
            posterior = cosine_logits(self.engine, self.engine.encode_frozen(batch.weak).global_, self.head).softmax(-1)
        pseudo = self.hints.apply_to(batch.index, PseudoLabels(posterior.argmax(-1), torch.ones_like(posterior[:, 0]), posterior))
        logits = cosine_logits(self.engine, self.engine.encode(batch.strong).global_, self.head)
        return StepOutput(*self_training_loss(logits, pseudo, self.class_prior, 1.0), pseudo.labels)

    @torch.no_grad()
    def predict_logits(self, images):
        return {"logits": cosine_logits(self.engine, self.engine.encode_frozen(images).global_, self.head)}

    def prediction_state(self):
        return {"head": self.head.detach()}

    def cost(self):
        return Cost(1, 1)


def build(engine, heads, config, training, seed):
    return ToySelfTraining(engine, heads.templates, config, scope=training.scope, weight_decay=training.weight_decay, seed=seed)
