"""WCA's scores against the released code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from finelens.classes.heads import pad_descriptions, weighted_description_head
from finelens.methods.descriptions import text_weights
from finelens.methods.wca import WcaConfig, weighted_crops

pytestmark = pytest.mark.golden


def test_class_vectors(golden):
    g = golden.tensors("wca_scores")
    texts = pad_descriptions(g["raw_desc_emb"].split(g["desc_counts"].tolist()))
    present = torch.arange(texts.shape[1]) < g["desc_counts"][:, None]
    weights = text_weights(texts, present, F.normalize(g["raw_label_emb"], dim=-1), "softmax", WcaConfig().text_scale)
    torch.testing.assert_close(weighted_description_head(texts, weights), g["W_ours"].T, atol=2e-6, rtol=0)
    assert math.isclose(WcaConfig().text_scale, math.exp(2))


def test_scores_of_each_draw_of_crops(golden):
    g = golden.tensors("wca_scores")
    image = F.normalize(g["image_features"], dim=-1)
    for indices, expected in zip(g["indices"], g["logits_ours"], strict=True):
        crops = F.normalize(g["crops"][:, indices], dim=-1)
        torch.testing.assert_close(weighted_crops(image, crops, WcaConfig().crop_scale) @ g["W_ours"], expected, atol=2e-6, rtol=0)
