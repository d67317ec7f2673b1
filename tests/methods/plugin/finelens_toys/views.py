import torch

from finelens.methods.parts.frozen import NoOptions, cosine_logits
from finelens.methods.parts.views import ViewTask
from finelens.protocol import InferenceViews

CONFIG = NoOptions


class MeanOfViews(ViewTask):
    def answer(self, centre, views):
        features = torch.cat([centre[:, None], views], dim=1).mean(1)  # (B, E)
        return cosine_logits(self.engine, features, self.head)


def build(engine, heads, config, training, seed):
    return MeanOfViews(engine, heads.templates, InferenceViews(2))
