"""Whether new photographs look like those of the fit, without labels. Ours; measured in docs/report.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.solvers.neighbours import evenly_spread, top_neighbours

# Photographs of the fit that new ones are held against, and nearest of them that are averaged.
BANK, NEAREST = 1024, 5
# So many copies of a photograph in the bank are passed over: whether it took part in the fit must not decide what it is near to.
COPIES = 3
# Shares of the fit's own photographs below whose likeness a photograph is unlike them, and counts as a sign that the collection is another.
UNLIKE, SIGN = 0.01, 0.05
# A collection is another from this share of signs on, if chance gives as many this rarely at most.
SHARE, CHANCE = 0.2, 1e-3
# With fewer photographs in the fit the shares say too little.
LEAST = 20
CHUNK = 2048


@dataclass(frozen=True)
class Familiarity:
    """What the photographs of a fit look like.

    Attributes:
        bank: Unit-norm features of some of them by the unadapted model, (B, E), float16.
        levels: Likeness below which the shares ``UNLIKE`` and ``SIGN`` of them lie, (2,), float32.
    """

    bank: Tensor
    levels: Tensor

    @torch.no_grad()
    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines (N, k) of unit-norm features (N, E) with the nearest other photographs of the bank, and their positions (N, k)."""
        found = [self._others(part) for part in features.split(CHUNK)]
        cosines, near = zip(*found or [self._others(features)], strict=True)
        return torch.cat(cosines), torch.cat(near)

    def _others(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = features.cpu()
        cosines, near = top_neighbours(x.float(), self.bank.float(), NEAREST + COPIES, chunk_size=CHUNK)  # (n, K)
        last = (self.bank[near] == x.half()[:, None]).all(2).long().argsort(dim=1, stable=True)[:, :NEAREST]  # (n, k)
        return cosines.gather(1, last), near.gather(1, last)

    def likeness(self, features: Tensor) -> Tensor:
        """Mean cosine (N,) of unit-norm features (N, E) with the nearest other photographs of the bank."""
        return self.nearest(features)[0].mean(1)

    def unlike(self, likeness: Tensor) -> Tensor:
        """Which photographs (N,) look unlike nearly all of the fit; of the fit's own kind one in a hundred does."""
        return likeness < self.levels[0]

    def complaint(self, likeness: Tensor) -> str | None:
        """One line where a collection looks unlike that of the fit, else None.

        Args:
            likeness: Of all its photographs, (N,).
        """
        from scipy.special import bdtrc

        n, signs = len(likeness), int((likeness < self.levels[1]).sum())
        if not n or signs < SHARE * n or bdtrc(signs - 1, n, SIGN) > CHANCE:
            return None
        return (
            f"{signs} of {n} photographs look unlike those that the run was adapted to (of its own kind {SIGN:.0%} would): "
            "their classes are not to be relied on; adapt to them with finelens adapt"
        )


@torch.no_grad()
def learn_familiarity(features: Tensor) -> tuple[Familiarity, Tensor] | None:
    """Remember what the photographs of a fit look like; None of fewer than ``LEAST``.

    Args:
        features: Unit norm, by the unadapted model, (N, E).

    Returns:
        What is remembered, and positions (N, k) in its bank of each photograph's nearest others.
    """
    if len(features) < LEAST:
        return None
    rows = evenly_spread(len(features), BANK, features.device)
    bank = features[rows].cpu().half()
    cosines, near = Familiarity(bank, torch.zeros(2)).nearest(features)
    order = cosines.mean(1).sort().values
    levels = [order[int(share * len(order))].item() for share in (UNLIKE, SIGN)]
    return Familiarity(bank, torch.tensor(levels)), near
