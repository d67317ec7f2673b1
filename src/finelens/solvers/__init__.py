"""Training-free classifiers on cached features: fitted on unlabelled images and text prototypes in seconds."""

from __future__ import annotations

from finelens.solvers.base import Solver
from finelens.solvers.gda_em import GdaEm
from finelens.solvers.sinkhorn import SinkhornOt
from finelens.solvers.stata import StatA
from finelens.solvers.transclip import TransClip
from finelens.solvers.zlap import ZLaP

__all__ = ["GdaEm", "SinkhornOt", "Solver", "StatA", "TransClip", "ZLaP"]
