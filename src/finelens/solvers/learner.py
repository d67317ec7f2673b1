"""What a person's answers teach while they come: the label-free answer of the default method is made once, and each lesson goes on from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.columns import centred_views, silenced
from finelens.solvers.consensus import Consensus
from finelens.solvers.known import Known
from finelens.solvers.neighbours import evenly_spread
from finelens.solvers.opinions import SHARPER
from finelens.solvers.taught import parts_left_out, spoken_for, steady, teach


class Learner:
    """Posteriors of the images of a fit, again after every answer.

    With the same answers they are those of :class:`~finelens.solvers.Consensus` with hints. Classes that have no prototype, because a person thought
    of them, start with the mean of the others' log-posteriors: nothing speaks for them or against them but the answers. There may be no other class.

    Args:
        views: Feature matrices (N, D_v) of the same images; the first belongs to the prototypes.
        prototypes: (C, D_1); None where no class has a name yet.
        logit_scale: Multiplier of cosines.

    Attributes:
        looks: Centred unit views, (N, D).
        steady: What lessons are learnt from, see :func:`~finelens.solvers.taught.steady`; (N, D).
        log_p: Label-free log-posteriors, (N, C).
        solver: What made them, fitted without labels; None without prototypes.
    """

    solver: Consensus | None = None

    def __init__(self, views: Sequence[Tensor], prototypes: Tensor | None, logit_scale: float = 100.0) -> None:
        if prototypes is None:
            x = torch.cat([F.normalize(view, dim=1) for view in views], 1)
            widths = [view.shape[1] for view in views]
            self.looks = centred_views(x, x.mean(0), widths)
            rows = evenly_spread(len(x), Consensus().bank, x.device)
            self.steady = steady(self.looks, self.looks[rows], widths, rows=rows)
            self.log_p, self._sharpness = x.new_zeros(len(x), 0), SHARPER
            return
        self.solver = solver = Consensus()
        p = solver.fit_predict_proba(list(views), prototypes=prototypes, logit_scale=logit_scale)
        widths = solver.widths_.tolist()
        unheard = [v for v, weight in enumerate(solver.weights_.tolist()) if not weight]
        x = silenced(torch.cat([F.normalize(view, dim=1) for view in views], 1), unheard, widths)
        self.looks = centred_views(x, solver.centre_, widths)
        rows = evenly_spread(len(x), solver.bank, x.device)
        self.steady = steady(self.looks, self.looks[rows], widths, rows=rows)
        self.log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        self._sharpness = SHARPER * float(solver.sizes_[-1])

    @torch.no_grad()
    def posteriors(self, known: Known, classes: int) -> Tensor:
        """Probabilities (N, C') of all images after some answers; the answered ones are given what the model alone would say.

        Args:
            known: The answers; there may be none, if there is a class.
            classes: C', at least C.
        """
        log_p, heard = self._with_further(classes)
        if not len(known):
            return log_p.softmax(1)
        return (self._sharpness * teach(self.steady, log_p, known, heard=heard).logits(self.steady, log_p)).softmax(1)

    def parts_left_out(self, known: Known, classes: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The answers part by part with what lessons without the part say, see :func:`~finelens.solvers.taught.parts_left_out`."""
        log_p, heard = self._with_further(classes)
        return parts_left_out(self.steady, log_p, known, heard=heard)

    def spoken_for(self, known: Known) -> Tensor:
        """Images that each answered one speaks for, (K,), see :func:`~finelens.solvers.taught.spoken_for`."""
        return spoken_for(self.steady, known)

    def _with_further(self, classes: int) -> tuple[Tensor, bool]:
        """Label-free log-posteriors (N, C'), and whether they know all classes."""
        further, log_p = classes - self.log_p.shape[1], self.log_p
        if not further:
            return log_p, True
        mean = log_p.mean(1, keepdim=True) if log_p.shape[1] else log_p.new_zeros(len(log_p), 1)
        return torch.cat([log_p, mean.expand(-1, further)], 1), False
