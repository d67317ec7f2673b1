"""Options of microCLIP. The defaults are the paper's, but for those listed as deviations on the method's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finelens.errors import UserError
from finelens.methods.microclip.ncut import SalientSide
from finelens.training.marginal import Marginal


@dataclass(frozen=True)
class MicroClipConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        gamma: Share of the multi-view prior in the pseudo-label (section "Dynamic Knowledge Aggregation").
        fusion: Share w of the global branch in TokenFusion, at feature and at logit level.
        crops: Random crops per image and step, M.
        prior_views: ``fresh``: the multi-view prior sees new crops in every epoch, through the encoder as it learns (published); ``cached``: it is
            computed once, from one draw of crops and the start encoder.
        ce_weight: Weight of the cross-entropy.
        marginal_weight: Weight of the marginal term; the released code's factor 2 is inside the term.
        marginal: What the batch marginal is drawn to: ``uniform`` (published), ``prior`` (estimated without labels), ``none``.
        branches: ``fused`` is the method; ``global`` trains and predicts with the global feature alone (the paper's coarse baselines).
        teacher: Pseudo-labels from ``aggregated`` (the method), ``head`` (the learnable head alone), ``multi-view`` (crops with the learnable
            head) or ``multi-view-fixed`` (crops with the frozen head).
        pooling: ``soap``, ``saliency-mean`` (mean of the salient patches) or ``token-mean`` (mean of all patches) for the fine-grained token.
        query: SOAP query: ``saliency``, ``token-mean``, ``cls`` or ``random-token``.
        empty_token: ``zero`` or ``learnable`` empty token in SOAP.
        head_init: Learnable head starts from ``descriptions`` or ``templates``.
        train_head: Whether the learnable head is trained.
        projection_lr_scale: Learning rate of SOAP's projections as a share of ``training.lr``. None takes 1, as published, for a tower with a token
            sequence and 0.1 for a convolutional one, where the published rate can wreck short runs: see the method's page.
        salient_side: Which side of the cut is salient: that of the most ``decided`` patch, or of the patches more like their mean (``mean-like``);
            ``as-solved`` is ``decided`` where ties are the solver's, for files of before. None takes ``decided`` for a transformer and ``mean-like``
            for a convolutional tower: see the method's page. ``released_code`` has a rule of its own.
        released_code: Reproduce the rules of the released code: NCut on raw dot products with its threshold and sign rule, and weight decay on
            every trained tensor.
    """

    gamma: float = 0.5
    fusion: float = 0.5
    crops: int = 8
    prior_views: Literal["fresh", "cached"] = "fresh"
    ce_weight: float = 1.0
    marginal_weight: float = 1.0
    marginal: Marginal = "uniform"
    branches: Literal["fused", "global"] = "fused"
    teacher: Literal["aggregated", "head", "multi-view", "multi-view-fixed"] = "aggregated"
    pooling: Literal["soap", "saliency-mean", "token-mean"] = "soap"
    query: Literal["saliency", "token-mean", "cls", "random-token"] = "saliency"
    empty_token: Literal["zero", "learnable"] = "zero"
    head_init: Literal["descriptions", "templates"] = "descriptions"
    train_head: bool = True
    projection_lr_scale: float | None = None
    salient_side: SalientSide | None = None
    released_code: bool = False

    def __post_init__(self) -> None:
        for name in ("gamma", "fusion"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie between 0 and 1, got {value}")
        if not 1 <= self.crops <= 256:
            raise UserError(f"method.crops must lie between 1 and 256, got {self.crops}; a pseudo-label without crops is method.gamma=0")
        for name in ("ce_weight", "marginal_weight", "projection_lr_scale"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"method.{name} must not be negative, got {value}")
