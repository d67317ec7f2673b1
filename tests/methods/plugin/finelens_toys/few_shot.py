import torch
import torch.nn.functional as F
from torch import nn

from finelens.methods.parts.frozen import NoOptions, cosine_logits
from finelens.protocol import Cost, StepOutput, Task, ViewPlan
from finelens.training.state import resize_on_load

CONFIG = NoOptions
TRAINING = {"scope": "none"}


class ToyFewShot(Task):
    views = ViewPlan(weak=False, strong=False)

    def __init__(self, engine, start, seed):
        super().__init__(engine)
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
        self.head = nn.Parameter(start + 1e-3 * noise.to(start))
        self.register_buffer("index", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("label", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("features", start[:0].clone())
        resize_on_load(self, "index", "label", "features")
        self.to(engine.device)

    def prepare(self, features):
        self.index, self.label = features.hints.index, features.hints.label
        self.features = features.global_[self.index]

    def subset(self):
        return self.index

    def parameter_groups(self):
        return [{"params": [("head", self.head)], "weight_decay": 0.0}]

    def step(self, batch, epoch, step_in_epoch):
        rows = torch.searchsorted(self.index, batch.index)
        loss = F.cross_entropy(cosine_logits(self.engine, self.features[rows], self.head), self.label[rows])
        return StepOutput(loss, {"ce": loss})

    @torch.no_grad()
    def predict_logits(self, images):
        return {"logits": cosine_logits(self.engine, self.engine.encode_frozen(images).global_, self.head)}

    def prediction_state(self):
        return {"head": self.head.detach()}

    def cost(self):
        return Cost(0, 0)


def build(engine, heads, config, training, seed):
    return ToyFewShot(engine, heads.templates, seed)
