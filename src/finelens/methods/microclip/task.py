"""microCLIP (Silva et al., arXiv 2510.02270): unsupervised adaptation by coarse-fine token fusion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.classes.heads import ClassHeads
from finelens.core.threads import prefetch
from finelens.engine.engine import Engine
from finelens.images.randomness import generator
from finelens.methods.microclip.cached_prior import CachedPrior, encode_crops
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.ncut import Saliency, SalientSide, ncut_saliency
from finelens.methods.microclip.pseudo_labels import aggregate, fuse_features, multi_view_feature
from finelens.methods.microclip.soap import Soap, masked_mean
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.parts.self_training import SelfTraining
from finelens.protocol import Batch, Cost, ImageTokens, StepOutput, TargetFeatures, ViewPlan
from finelens.training.losses import running_log_marginal
from finelens.training.pseudo_labels import is_matrix, split_by_decay

# Learning rate of SOAP's projections on a convolutional tower, as a share of the published one.
CONVOLUTIONAL_LR_SCALE = 0.1


@dataclass(frozen=True)
class Features:
    """Both branches of a batch in the joint space.

    Attributes:
        global_: Unit-norm global feature f_cls (B, E).
        fine: Unit-norm fine-grained feature f_fg (B, E); None when only the global branch is used.
        attention: SOAP attention (B, N + 1), None for other poolings.
        saliency: The cut, None where no saliency was needed.
    """

    global_: Tensor
    fine: Tensor | None = None
    attention: Tensor | None = None
    saliency: Saliency | None = None


class MicroClip(SelfTraining):
    """The method as a task of the training loop.

    Args:
        engine: Runs the backbone.
        heads: Text heads of the classes.
        config: Options.
        scope: Tuning scope of the image tower.
        weight_decay: Decay of the trained matrices.
        seed: Seed of the random-token query.
    """

    def __init__(
        self, engine: Engine, heads: ClassHeads, config: MicroClipConfig, *, scope: str = "norm", weight_decay: float = 0.1, seed: int = 0
    ) -> None:
        start = heads.descriptions if config.head_init == "descriptions" else heads.templates
        super().__init__(engine, start, config, scope=scope, weight_decay=weight_decay, seed=seed)
        cached = self._uses_crops and config.prior_views == "cached"
        self.cached_prior = CachedPrior(start.shape[1], start.dtype) if cached else None
        self.views = ViewPlan(weak=True, strong=True, crops=config.crops if self._uses_crops and not cached else 0)
        self.head = nn.Parameter(start.clone(), requires_grad=config.train_head)  # W*, (C, E)
        self.register_buffer("frozen_head", heads.weighted.clone())  # W_LLM, (C, E)
        self.register_buffer("log_marginal", torch.zeros(len(start), dtype=start.dtype))
        self.hints = HintMemory()
        self.frozen_head: Tensor
        self.log_marginal: Tensor
        if config.branches == "fused":
            self.soap: Soap | None = Soap(engine.backbone.width, learnable_empty=config.empty_token == "learnable")
        else:
            self.soap = None
        self.to(engine.device)

    @property
    def _uses_crops(self) -> bool:
        return self.config.teacher.startswith("multi-view") or (self.config.teacher == "aggregated" and self.config.gamma > 0)

    def prepare(self, features: TargetFeatures) -> None:
        """Take the hints, estimate the class prior from the zero-shot posteriors where the marginal term needs one, cache the multi-view prior."""
        self.hints.start(features.hints)
        posteriors = (self._scale * features.global_ @ self.frozen_head.T).softmax(-1)
        self.class_prior.start(self.hints.clamp(torch.arange(len(posteriors)), posteriors))
        if self.cached_prior is not None:
            assert features.first_views is not None
            self.cached_prior.start(self.engine, features.first_views(ViewPlan(strong=False, crops=self.config.crops)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Norms without decay, head and projections with; everything decayed with ``released_code``."""
        head = [("head", self.head)] if self.config.train_head else []
        released = self.config.released_code
        groups = split_by_decay([*self.tuned.items(), *head], self.weight_decay, lambda name, parameter: released or is_matrix(name, parameter))
        pooling = [(name, p) for name, p in self.named_parameters() if self._pools(name)]
        return [*groups, {"params": pooling, "weight_decay": self.weight_decay, "lr_scale": self._projection_lr_scale}]

    def _pools(self, name: str) -> bool:
        return name.startswith("soap.") and (name != "soap.empty" or self.config.empty_token == "learnable")

    @property
    def _projection_lr_scale(self) -> float:
        if self.config.projection_lr_scale is not None:
            return self.config.projection_lr_scale
        return 1.0 if self.engine.backbone.has_token_sequence else CONVOLUTIONAL_LR_SCALE

    def cost(self) -> Cost:
        """1 weak and M crop forwards without gradient, 1 strong forward with gradient; with a cached prior the crops, and a weak view, only once."""
        once = 0 if self.cached_prior is None else 1 + self.config.crops
        return Cost(no_grad_forwards=1 + self.views.crops, grad_forwards=1, once=once)

    # Features of the two branches (spec sections 2 to 5).

    def features(self, tokens: ImageTokens, *, draw: Tensor | None = None, cut: Callable[[], Saliency] | None = None) -> Features:
        """Global and fine-grained feature of a batch.

        Args:
            tokens: From the backbone, with patches if the fine-grained branch is used.
            draw: Uniform numbers (B,) for the random-token query.
            cut: Gives the saliency of these patches; None computes it here.
        """
        if self.soap is None or tokens.patches is None:
            return Features(tokens.global_)
        patches, config = tokens.patches, self.config
        saliency = None
        if self._needs_saliency:
            with self.engine.stopwatch("eigen"):
                saliency = self._cut(patches) if cut is None else cut()
        attention = None
        if config.pooling == "token-mean":
            pooled = patches.mean(1)  # (B, W)
        elif config.pooling == "saliency-mean":
            assert saliency is not None
            pooled = masked_mean(patches, saliency.mask)
        else:
            pooled, attention = self.soap(self._query(tokens, saliency, draw), patches)
        return Features(tokens.global_, F.normalize(self.engine.backbone.project(pooled), dim=-1), attention, saliency)

    @property
    def _needs_saliency(self) -> bool:
        return self.config.pooling == "saliency-mean" or (self.config.pooling == "soap" and self.config.query == "saliency")

    def _cut(self, patches: Tensor) -> Saliency:
        usual: SalientSide = "mean-like" if self.engine.backbone.is_convolutional else "decided"
        return ncut_saliency(patches, side=self.config.salient_side or usual, released_code=self.config.released_code)

    def _query(self, tokens: ImageTokens, saliency: Saliency | None, draw: Tensor | None) -> Tensor:
        """SOAP query (B, W)."""
        assert tokens.patches is not None
        if saliency is not None:
            return masked_mean(tokens.patches, saliency.mask)
        if self.config.query == "token-mean":
            return tokens.patches.mean(1)
        if self.config.query == "cls":
            return tokens.cls
        count = tokens.patches.shape[1]
        position = (torch.full((len(tokens.cls),), 0.5) if draw is None else draw).to(tokens.cls.device).mul(count).long()
        return tokens.patches[torch.arange(len(position), device=position.device), position]

    # What the report draws.

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The salient side of the cut, and SOAP's attention over its largest entry (the empty token left out)."""
        if self.soap is None:
            return {}
        found = self.features(self.engine.encode_frozen(images, patches=True))
        maps = {} if found.saliency is None else {"NCut mask": found.saliency.mask.float()}
        if found.attention is not None:
            attention = found.attention[:, :-1]  # (B, N)
            maps["SOAP attention"] = attention / attention.amax(1, keepdim=True)
        return maps

    @torch.no_grad()
    def crop_weights(self, images: Tensor, crops: Tensor) -> Tensor | None:
        """Weights of the crops in the multi-view prior."""
        return multi_view_feature(encode_crops(self.engine, crops), self.engine.encode_frozen(images).global_)[1].softmax(-1)

    # Logits (sections 5 and 8).

    def branch_logits(self, features: Features) -> dict[str, Tensor]:
        """``s f W*^T`` of each branch and their TokenFusion ``w cls + (1 - w) fg``, each (B, C)."""
        head = F.normalize(self.head, dim=-1)
        global_ = self._scale * features.global_ @ head.T
        if features.fine is None:
            return {"logits": global_, "global": global_}
        fine = self._scale * features.fine @ head.T
        w = self.config.fusion
        return {"logits": w * global_ + (1 - w) * fine, "global": global_, "fine": fine}

    @torch.no_grad()
    def pseudo_logits(self, weak: Features, composite: Tensor | None) -> Tensor:
        """Pseudo-logits (B, C) in cosine range.

        Args:
            weak: Features of the weak view.
            composite: Composite of the crop features (B, E), None where the teacher uses none.
        """
        head = F.normalize(self.head, dim=-1)
        teacher = self.config.teacher
        own = weak.global_ if weak.fine is None else fuse_features(weak.global_, weak.fine, self.config.fusion)
        if teacher == "head" or composite is None:
            return own @ head.T
        if teacher == "multi-view":
            return composite @ head.T
        prior = composite @ self.frozen_head.T
        return prior if teacher == "multi-view-fixed" else aggregate(prior, own @ head.T, self.config.gamma)

    # One step (section 1).

    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Pseudo-label from the weak view and the crops, then cross-entropy and marginal term on the strong view."""
        assert batch.weak is not None
        assert batch.strong is not None
        fused = self.soap is not None
        draw = self._draw(epoch, step_in_epoch, len(batch.index))
        with torch.no_grad():
            tokens = self.engine.encode_frozen(batch.weak, patches=fused)
            with self._cut_ahead(tokens, batch) as cut:
                composite = None if self.cached_prior is None else self.cached_prior.rows(batch.index)  # (B, E)
                if batch.crops is not None:
                    composite, _ = multi_view_feature(encode_crops(self.engine, batch.crops), tokens.global_)
                weak = self.features(tokens, draw=draw, cut=cut)
            pseudo = self.hints.clamp_cosines(batch.index, self.pseudo_logits(weak, composite))
        strong = self.features(self.engine.encode(batch.strong, patches=fused), draw=draw)
        loss, log = self.loss(strong, pseudo, first=step_in_epoch == 0)
        self.class_prior.remember(batch.index, (self._scale * pseudo).softmax(-1))
        if weak.saliency is not None:
            log["saliency_share"] = weak.saliency.mask.float().mean()
            log["edge_density"] = weak.saliency.density.mean().item()
            log["ncut_fallback"] = weak.saliency.fallback.float().mean().item()
        return StepOutput(loss, log, pseudo.argmax(-1))

    def _cut_ahead(self, tokens: ImageTokens, batch: Batch) -> AbstractContextManager[Callable[[], Saliency] | None]:
        """Cut the weak view on the host while the crops are encoded; nothing where either is missing."""
        patches = tokens.patches
        if patches is None or batch.crops is None or not self._needs_saliency:
            return nullcontext()
        return prefetch(lambda: self._cut(patches), patches.device)

    def _draw(self, epoch: int, step_in_epoch: int, count: int) -> Tensor | None:
        if self.config.query != "random-token":
            return None
        return torch.from_numpy(generator(self.seed, epoch, f"step {step_in_epoch}", "random-token").random(count))

    def loss(self, strong: Features, pseudo: Tensor, *, first: bool) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Section 9: ``ce_weight * CE + marginal_weight * L_marginal``, the released factor 1/0.5 inside the marginal term.

        Args:
            strong: Features of the strong view.
            pseudo: Pseudo-logits (B, C); their argmax is the hard label.
            first: Whether this is the first step of an epoch, where the running marginal starts anew.
        """
        logits = self.branch_logits(strong)["logits"]
        ce = F.cross_entropy(logits, pseudo.argmax(-1))
        loss = self.config.ce_weight * ce
        log: dict[str, float | Tensor] = {"ce": ce, "pseudo_confidence": (self._scale * pseudo).softmax(-1).amax(-1).mean()}
        log["agreement"] = (logits.argmax(-1) == pseudo.argmax(-1)).float().mean()
        log_marginal = running_log_marginal(logits, None if first else self.log_marginal)
        self.log_marginal = log_marginal.detach()
        term = self.class_prior.loss(log_marginal)
        if term is not None:
            log["marginal"] = term / 0.5
            loss = loss + self.config.marginal_weight * term / 0.5
        return loss, log

    def prediction_state(self) -> dict[str, Tensor]:
        """Heads and projections; the memories of training stay behind."""
        memories = ("log_marginal", "class_prior.", "hints.", "cached_prior.")
        return {k: v for k, v in self.state_dict().items() if not k.startswith(memories)}

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Section 10, inference: both branches on one centre view, no crops, no frozen head."""
        return self.branch_logits(self.features(self.engine.encode_frozen(images, patches=self.soap is not None)))
