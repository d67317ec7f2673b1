"""Photographs on a plane, those that look alike close together: for the map of the report. Documentation: docs/report.md."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.errors import UserError
from finelens.solvers.neighbours import evenly_spread, top_neighbours
from finelens.storage.cache import cached_tensors, state_digest
from finelens.storage.tensors import load_metadata, load_tensors, save_tensors

# Photographs that t-SNE places itself; the others go between the nearest of these, so that the cost does not grow beyond that of so many.
LANDMARKS = 1500
# Below so many a plane of two directions shows as much, and the library of t-SNE, which takes a second to import, is left alone.
LEAST = 100
NEAREST = 5
PERPLEXITY, ITERATIONS = 30, 350
TSNE, PCA = "t-SNE", "PCA"
# Share of the photographs beyond which the frame does not go: a few that lie far out must not press the rest together.
_TRIM = 0.002
_CHUNK = 2048


@dataclass(frozen=True)
class Layout:
    """Where photographs lie.

    Attributes:
        xy: Places in [0, 1], (N, 2), float32.
        nearest: Positions of the nearest photographs, (N, K), int32; of a large collection the nearest of some of them.
        likeness: Mean cosine with these, (N,), float32.
        how: ``t-SNE`` or ``PCA``.
    """

    xy: Tensor
    nearest: Tensor
    likeness: Tensor
    how: str


@torch.no_grad()
def lay_out(features: Tensor) -> Layout | None:
    """Place photographs; the same features give the same places on one machine.

    t-SNE (van der Maaten and Hinton, 2008; openTSNE, Policar et al., 2024) starts from the principal components. Where openTSNE is not installed, or
    photographs are few, the first two components are the places.

    Args:
        features: Unit norm, (N, E).

    Returns:
        The places; None of fewer than three photographs.
    """
    n = len(features)
    if n < 3:
        return None
    x = F.normalize(features.float().cpu() - features.float().cpu().mean(0), dim=1)  # (N, E)
    marks = evenly_spread(n, LANDMARKS, x.device)  # (M,)
    bank = x[marks]
    cosines, near = top_neighbours(x, bank, min(NEAREST, len(marks) - 1), chunk_size=_CHUNK, rows=marks)  # (N, K) each
    places, how = _places(bank)  # (M, 2)
    xy = torch.empty(n, 2)
    # Weights fall quickly, so that a photograph lies beside what it is most like.
    weights = (20 * cosines).softmax(1)[..., None]  # (N, K, 1)
    xy[:] = (weights * places[near]).sum(1)
    xy[marks] = places
    return Layout(_framed(xy), marks[near].int(), cosines.mean(1), how)


def _places(bank: Tensor) -> tuple[Tensor, str]:
    """Places (M, 2) of the landmarks, and how they were found. Those of t-SNE are kept for runs that look at the same photographs again."""
    if len(bank) < LEAST or find_spec("openTSNE") is None:
        return _components(bank), PCA
    key = ["map", str(PERPLEXITY), str(ITERATIONS), version("openTSNE"), state_digest({"bank": bank})]
    return cached_tensors(key, lambda: {"places": _tsne(bank)})["places"], TSNE


def _tsne(bank: Tensor) -> Tensor:
    from openTSNE import TSNE as Tsne

    # One job: sums of several come in any order.
    tsne = Tsne(perplexity=min(PERPLEXITY, len(bank) // 4), initialization="pca", neighbors="exact", random_state=0, n_jobs=1, n_iter=ITERATIONS)
    return torch.from_numpy(tsne.fit(bank.numpy()).copy()).float()


def _components(x: Tensor) -> Tensor:
    """The first two principal components (M, 2), with signs that do not depend on the library."""
    left, values, _ = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False)
    flat = torch.zeros(len(x), 2, dtype=torch.float64)
    kept = min(2, left.shape[1])
    flat[:, :kept] = left[:, :kept] * values[:kept]
    largest = flat.abs().argmax(0)
    return (flat * flat[largest, [0, 1]].sign()).float()


def _framed(xy: Tensor) -> Tensor:
    """Places in [0, 1] that fill it, since neither axis has a scale of its own; those beyond the frame stand at its edge."""
    ends = torch.quantile(xy[:: max(1, len(xy) // 10000)], torch.tensor([_TRIM, 1 - _TRIM]), dim=0)  # (2, 2)
    side = (ends[1] - ends[0]).clamp(min=1e-9)  # (2,)
    return (0.5 + (xy - ends.mean(0)) / (1.04 * side)).clamp(0, 1)


def write_layout(path: Path, layout: Layout) -> None:
    """Keep the places for reports to come.

    Raises:
        UserError: The file cannot be written.
    """
    save_tensors(path, {"xy": layout.xy, "nearest": layout.nearest, "likeness": layout.likeness}, {"how": layout.how})


def read_layout(path: Path, count: int) -> Layout | None:
    """The places of a run's photographs; None where there is no such file, or one of another number: the report goes without.

    Args:
        path: The file.
        count: Photographs, N.
    """
    if not path.is_file():
        return None
    try:
        how, tensors = load_metadata(path).get("how", ""), load_tensors(path)
        found = Layout(tensors["xy"], tensors["nearest"], tensors["likeness"], how)
    except (UserError, KeyError):
        return None
    fits = found.xy.shape == (count, 2) and found.nearest.shape[:1] == found.likeness.shape == (count,) and found.nearest.dim() == 2
    inside = fits and bool(found.xy.isfinite().all()) and (not found.nearest.numel() or bool(((found.nearest >= 0) & (found.nearest < count)).all()))
    return found if inside else None
