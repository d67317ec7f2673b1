"""FAIR's crop weights against the released WCA code, whose weighting they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finelens.methods.fair.alignment import alignment_logits, select_crops
from finelens.methods.fair.config import FairConfig

pytestmark = pytest.mark.golden


def test_unselected_crops_score_as_wca_does_up_to_the_length_of_the_composite(golden):
    g = golden.tensors("wca_scores")
    image = F.normalize(g["image_features"], dim=-1)
    anchors = g["W_ours"].T[:, None]  # (C, 1, E)
    for indices, expected in zip(g["indices"], g["logits_ours"], strict=True):
        crops = F.normalize(g["crops"][:, indices], dim=-1)  # (B, K, E)
        kept, weights = select_crops(crops, image, len(indices), FairConfig().crop_scale)
        length = torch.einsum("bk,bke->be", weights, kept).norm(dim=-1, keepdim=True)
        torch.testing.assert_close(alignment_logits(kept, weights, anchors, 1.0) / length, expected, atol=2e-6, rtol=0)
