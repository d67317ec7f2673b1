"""Saliency by normalised cut of the patch graph (microCLIP; Shi and Malik, 2000; Wang et al., 2022, "TokenCut")."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.threads import side_by_side

TAU = 0.2
EPS = 1e-6
# Below this difference the second eigenvector is not determined by the graph.
MIN_GAP = 1e-9
MAX_SOLVERS = 8
# Entries that differ by less than this share of the largest count as equal: which is larger would be the solver's rounding.
TIE = 1e-6

SalientSide = Literal["decided", "mean-like", "as-solved"]


@dataclass(frozen=True)
class Saliency:
    """Result of a cut.

    Attributes:
        mask: Salient patches, (B, N) bool, on the tokens' device.
        vector: The cut's eigenvector with its sign fixed, (B, N) float64, on the host like the rest.
        fallback: Images whose graph determines no cut; their mask is all patches, (B,) bool.
        density: Share of patch pairs above the threshold, self pairs included, (B,).
    """

    mask: Tensor
    vector: Tensor
    fallback: Tensor
    density: Tensor


@torch.no_grad()
def ncut_saliency(tokens: Tensor, *, side: SalientSide = "decided", released_code: bool = False) -> Saliency:
    """Cut each image's patches in two and keep one side.

    The graph joins patches whose similarity exceeds ``TAU`` (weight 1, others ``EPS``); the cut is the second eigenvector of the normalised
    Laplacian, solved in float64. Default form: cosine similarity, eigenvector mapped back by ``D^-1/2``, sign fixed by ``side``, mask above the
    mean. A graph that is complete, or whose second eigenvalue is not separated from the third, determines no cut: all patches are salient and
    ``fallback`` says so. So does a graph whose eigenproblem the solver gives up on.

    Args:
        tokens: Patch tokens (B, N, W).
        side: Which side is salient. ``decided``: that of the seed, the largest absolute entry ("TokenCut"). ``mean-like``: that of the patches more
            like their mean, by the covariance of entries and cosines; that of the seed where it is zero. ``as-solved``: ``decided`` with ties left to
            the solver's rounding, which is what files of before mean.
        released_code: Reproduce the rule of the released microCLIP code: raw dot products, no ``D^-1/2``, threshold at the standard deviation, sign
            fixed after thresholding, no fallback.
    """
    tokens = tokens.detach()
    likeness = F.cosine_similarity(tokens.float(), tokens.float().mean(1, keepdim=True), dim=-1).cpu()  # (B, N)
    if not released_code:
        tokens = F.normalize(tokens.float(), dim=-1)
    # The small eigenproblems are solved on the host in float64, which not every device has.
    adjacent = (tokens @ tokens.transpose(1, 2) > TAU).cpu()  # (B, N, N)
    device, n = tokens.device, tokens.shape[1]
    density = adjacent.flatten(1).double().mean(1)
    if n < 3:
        # Two patches have no second cut to compare with; the graph decides nothing.
        vector = torch.zeros(tokens.shape[:2], dtype=torch.float64)
        return Saliency(torch.ones(tokens.shape[:2], dtype=torch.bool, device=device), vector, torch.ones(len(tokens), dtype=torch.bool), density)
    degree, values, vectors = _eigen(adjacent)
    unsolved = values.isnan().any(1)
    vector = vectors[..., 1]  # (B, N)
    if released_code:
        mask, vector = released_sign_rule(vector)
        fallback = unsolved
    else:
        vector = vector / degree.sqrt()
        tie = 0.0 if side == "as-solved" else TIE
        vector = vector * _sign(vector, likeness.double(), side, tie)
        fallback = unsolved | adjacent.flatten(1).all(1) | (values[:, 2] - values[:, 1] < MIN_GAP)
        mask = vector > vector.mean(1, keepdim=True) + tie * vector.abs().amax(1, keepdim=True)
    # The released rule knows no fallback but for an eigenproblem without a solution.
    return Saliency((mask | fallback[:, None]).to(device), vector, fallback, density)


def _sign(vector: Tensor, likeness: Tensor, side: SalientSide, tie: float) -> Tensor:
    """1 or -1 (B, 1) that makes the salient side of eigenvectors (B, N) positive, whatever sign the solver gave; 0 for a vector of zeros.

    Args:
        vector: Eigenvectors, mapped back.
        likeness: Cosines of the patches with their mean (B, N), of float32 accuracy.
        side: As for :func:`ncut_saliency`.
        tie: Share of the largest entry by which entries that count as equal may differ.
    """
    largest = vector.abs().amax(1, keepdim=True)  # (B, 1)
    # The first of those that tie for the largest.
    seed = (vector.abs() >= (1 - tie) * largest).byte().argmax(1, keepdim=True)
    decided = vector.gather(1, seed).sign()
    if side != "mean-like":
        return decided
    lean = (vector * (likeness - likeness.mean(1, keepdim=True))).mean(1, keepdim=True)  # (B, 1)
    return torch.where(lean.abs() > tie * largest, lean.sign(), decided)


def released_sign_rule(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The published threshold and sign: mask above the unbiased standard deviation, complemented where it leaves the seed out.

    Args:
        vector: Second eigenvector with the solver's sign, (B, N).

    Returns:
        Mask (B, N) and the vector, negated where the complement was taken.
    """
    mask = vector > vector.std(1, keepdim=True)
    seed = vector.abs().argmax(1, keepdim=True)
    flip = ~mask.gather(1, seed)  # (B, 1)
    return mask ^ flip, torch.where(flip, -vector, vector)


def _eigen(adjacent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Degrees (B, N), eigenvalues (B, N) ascending and eigenvectors (B, N, N) of the normalised Laplacian ``D^-1/2 (D - A) D^-1/2``.

    Where the solver gives up on an image, its eigenvalues are NaN and its eigenvectors 0.
    """
    affinity = adjacent.double().clamp(min=EPS)  # (B, N, N)
    degree = affinity.sum(2)  # (B, N)
    scale = 1 / (degree.sqrt() + EPS)
    laplacian = scale[:, :, None] * (torch.diag_embed(degree) - affinity) * scale[:, None, :]
    values, vectors = _in_threads(laplacian)
    return degree, values, vectors


def _in_threads(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a batch (B, N, N): the solver takes one matrix after the other, so each core gets a part of them."""
    values, vectors = zip(*side_by_side(_solve, laplacian.chunk(min(MAX_SOLVERS, torch.get_num_threads()))), strict=True)
    return torch.cat(values), torch.cat(vectors)


def _solve(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(laplacian)
    except torch.linalg.LinAlgError:
        return _one_by_one(laplacian)
    return values, vectors


def _one_by_one(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    """What can be solved of a batch (B, N, N) of which something cannot."""
    values, vectors = torch.full_like(laplacian[:, 0], torch.nan), torch.zeros_like(laplacian)
    for i, matrix in enumerate(laplacian):
        with suppress(torch.linalg.LinAlgError):
            values[i], vectors[i] = torch.linalg.eigh(matrix)
    return values, vectors
