"""CLIP-Refine (Yamaguchi et al., CVPR 2025): one pass over image-text pairs that draws the two towers together. Documentation: docs/stages.md.

Shapes: N pairs, B pairs of a batch, E joint width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finelens.core.console import Console
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.randomness import generator, permutation
from finelens.protocol import ImageStore, NotAvailableError
from finelens.training.stage_config import StageConfig


@dataclass(frozen=True)
class Pairs:
    """Images with a text each.

    Attributes:
        store: The images.
        image: Position in the store of each pair's image, (N,).
        text: Text of each pair, N.
        group: Pairs of one group match each other, (N,), int64.
    """

    store: ImageStore
    image: np.ndarray
    text: tuple[str, ...]
    group: Tensor


@dataclass(frozen=True)
class Gap:
    """How far images and texts of pairs lie apart (Liang et al., NeurIPS 2022).

    Attributes:
        gap: Distance between the mean image feature and the mean text feature.
        pair_distance: Mean distance of the two features of a pair.
    """

    gap: float
    pair_distance: float

    @classmethod
    def of(cls, images: Tensor, texts: Tensor) -> Gap:
        """Of unit-norm features (N, E) of the pairs."""
        return cls((images.mean(0) - texts.mean(0)).norm().item(), (images - texts).norm(dim=1).mean().item())


@dataclass(frozen=True)
class Refined:
    """What the stage did.

    Attributes:
        pairs: Number of pairs.
        steps: Optimiser steps.
        text_trained: Whether the text tower learned.
        before: The gap on the pairs by the model that the stage starts from.
        after: The same by the refined one.
        loss: Mean loss of the steps.
        distillation: Its part that compares the pairs of a batch.
        reference: Its part that draws each pair to a random reference, without its weight.
    """

    pairs: int
    steps: int
    text_trained: bool
    before: Gap
    after: Gap
    loss: float
    distillation: float
    reference: float


def random_feature_alignment(images: Tensor, texts: Tensor, reference: Tensor) -> Tensor:
    """``mse(f_i, r) + mse(f_t, r)`` with one reference (B, E) for the image (B, E) and the text (B, E) of a pair."""
    return F.mse_loss(images, reference) + F.mse_loss(texts, reference)


def soft_targets(teacher_logits: Tensor, matches: Tensor, own_match: float) -> Tensor:
    """``a P + (1 - a) softmax(teacher)``, rows (B, B); P spreads a row evenly over what matches it, and is the identity for pairs that differ.

    Args:
        teacher_logits: Scaled similarities (B, B) of the model that the stage starts from, images or texts first.
        matches: Whether two pairs say the same, (B, B).
        own_match: a.
    """
    same = matches.to(teacher_logits)
    return own_match * same / same.sum(1, keepdim=True) + (1 - own_match) * teacher_logits.softmax(1)


def hybrid_distillation(logits: Tensor, teacher_logits: Tensor, matches: Tensor, own_match: float) -> Tensor:
    """Mean over both directions of ``KL(target || softmax(logits))``, targets as :func:`soft_targets` gives them; temperature 1.

    Args:
        logits: Scaled similarities (B, B), images by texts.
        teacher_logits: The same by the model that the stage starts from.
        matches: Whether two pairs say the same, (B, B), symmetric.
        own_match: Share of the matches in the targets.
    """
    parts = [
        F.kl_div(own.log_softmax(1), soft_targets(theirs, matches, own_match), reduction="batchmean")
        for own, theirs in ((logits, teacher_logits), (logits.T, teacher_logits.T))
    ]
    return (parts[0] + parts[1]) / 2


def references(ids: Sequence[str], dim: int, seed: int, epoch: int) -> Tensor:
    """One ``r ~ N(0, I)`` for each pair, (B, E): a function of the seed, the epoch and the pair."""
    return torch.from_numpy(np.stack([generator(seed, epoch, own, "reference").standard_normal(dim) for own in ids])).float()


class TextSide:
    """Features of the pairs' texts, with gradient where the text tower can have one.

    Attributes:
        tuned: Parameters that learn, by name; none where the tower stays as it is.
        why: Why it does; empty where it learns.

    Args:
        engine: Runs the backbone.
        texts: Every text of the pairs.
        wanted: ``auto`` or ``frozen``.
    """

    def __init__(self, engine: Engine, texts: Sequence[str], wanted: str) -> None:
        self.engine = engine
        self.fixed = engine.backbone.encode_text(texts).to(engine.device)  # (N, E)
        self.texts = texts
        self.tuned: dict[str, nn.Parameter] = {}
        self.why = "stage.text=frozen" if wanted == "frozen" else ""
        if wanted == "auto":
            try:
                self.tuned = engine.backbone.tunable_text("svd")
                engine.backbone.embed_tokens(engine.backbone.tokenize(texts[:1]).to(engine.device))
            except (NotAvailableError, UserError) as error:
                self.tuned, self.why = {}, str(error)

    def features(self, index: Sequence[int]) -> Tensor:
        """Unit-norm features (B, E) of some texts by the tower as it is now."""
        if not self.tuned:
            return self.fixed[list(index)]
        backbone = self.engine.backbone
        distinct = list(dict.fromkeys(self.texts[i] for i in index))
        tokens = backbone.tokenize(distinct).to(self.engine.device)  # (U, L)
        with parametrize.cached():
            rows = backbone.encode_token_embeddings(backbone.embed_tokens(tokens), tokens).to(self.fixed)  # (U, E)
        at = {text: u for u, text in enumerate(distinct)}
        return rows[[at[self.texts[i]] for i in index]]  # (B, E)

    @torch.no_grad()
    def all(self) -> Tensor:
        """Features (N, E) of every text by the tower as it is now."""
        return self.engine.backbone.encode_text(self.texts).to(self.engine.device) if self.tuned else self.fixed


def refine(engine: Engine, pairs: Pairs, start: Tensor, config: StageConfig, seed: int, console: Console) -> Refined:
    """Train both towers in place. What the text tower learned lasts until ``Backbone.merge`` or ``release_text``.

    Args:
        engine: Runs the backbone.
        pairs: Images and texts.
        start: Unit-norm image features of the pairs by the model as it is, (N, E).
        config: The stage.
        seed: Of the run.
        console: Progress.

    Raises:
        UserError: The loss is no number any more.
    """
    text = TextSide(engine, pairs.text, config.text)
    if text.why:
        console.say(f"stage {config.name}: the text tower stays as it is ({text.why})")
    teacher_texts = text.fixed
    before = Gap.of(start, teacher_texts)
    tuned = {**engine.backbone.tunable(config.scope), **text.tuned}
    sums, steps = torch.zeros(3, dtype=torch.float64), 0
    with _learning(tuned):
        optimizer = torch.optim.AdamW(_groups(tuned, config.weight_decay), lr=config.lr, betas=(0.9, 0.98), eps=1e-6)
        for epoch in range(config.epochs):
            for rows, pixels in _steps(engine, pairs, config, seed, epoch, console):
                images, texts = engine.encode(pixels).global_, text.features(rows)
                ids = [f"{pairs.store.ids[pairs.image[n]]} {pairs.text[n]}" for n in rows]
                scale = engine.backbone.logit_scale
                matches = pairs.group[rows][:, None] == pairs.group[rows]
                theirs = scale * start[rows] @ teacher_texts[rows].T
                hybrid = hybrid_distillation(scale * images @ texts.T, theirs, matches.to(theirs.device), config.own_match)
                aligned = random_feature_alignment(images, texts, references(ids, images.shape[1], seed, epoch).to(images))
                loss = hybrid + config.reference_weight * aligned
                if not loss.isfinite():
                    raise UserError(f"stage {config.name}: the loss is {loss.item()} at step {steps + 1}; a smaller --set stage.lr helps")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                sums += torch.stack([part.detach().double().cpu() for part in (loss, hybrid, aligned)])
                steps += 1
    after = Gap.of(encode_pairs(engine, pairs, console), text.all())
    return Refined(len(pairs.text), steps, bool(text.tuned), before, after, *(sums / steps).tolist())


def encode_pairs(engine: Engine, pairs: Pairs, console: Console) -> Tensor:
    """Unit-norm image features (N, E) of the pairs by the tower as it is; nothing is kept."""
    needed = np.unique(pairs.image)
    found: dict[int, Tensor] = {}
    with console.progress(len(needed), "look at pairs") as bar:
        for index, pixels in centre_batches(pairs.store, engine.backbone.preprocess, 64, order=needed):
            found |= dict(zip(index.tolist(), engine.encode_each(pixels).global_, strict=True))
            bar.update(len(index))
    return torch.stack([found[i] for i in pairs.image.tolist()])


def _steps(engine: Engine, pairs: Pairs, config: StageConfig, seed: int, epoch: int, console: Console) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of the pairs and their centre views (B, 3, S, S) in the order of the epoch, but for a last pair alone: it has no contrast."""
    order = permutation(generator(seed, epoch, "", "stage"), len(pairs.text))
    with console.progress(len(order), f"stage {config.name}") as bar:
        shown = centre_batches(pairs.store, engine.backbone.preprocess, config.batch_size, order=pairs.image[order])
        for start, (_, pixels) in zip(range(0, len(order), config.batch_size), shown, strict=True):
            rows = order[start : start + config.batch_size].tolist()
            if len(rows) > 1:
                yield rows, pixels
            bar.update(len(rows))


@contextmanager
def _learning(tuned: dict[str, nn.Parameter]) -> Iterator[None]:
    for parameter in tuned.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in tuned.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _groups(tuned: dict[str, nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Matrices decay; scales and biases do not."""
    matrices = [p for p in tuned.values() if p.ndim > 1]
    others = [p for p in tuned.values() if p.ndim <= 1]
    return [{"params": own, "weight_decay": share} for own, share in ((matrices, decay), (others, 0.0)) if own]
