"""Training-free classifiers on cached features: fitted on unlabelled images and text prototypes in seconds."""

from __future__ import annotations

from finelens.solvers.base import Solver
from finelens.solvers.consensus import Consensus
from finelens.solvers.gda import Gda
from finelens.solvers.gda_em import GdaEm
from finelens.solvers.inmap import InMap
from finelens.solvers.joint_gmm import JointGmm
from finelens.solvers.online import OnlineSolver
from finelens.solvers.online_gda import OnlineGda
from finelens.solvers.onzeta import OnZeta
from finelens.solvers.pta import Pta
from finelens.solvers.self_adaptive_ot import SelfAdaptiveOt
from finelens.solvers.sinkhorn import SinkhornOt
from finelens.solvers.stata import StatA
from finelens.solvers.sus_x import CapsAdapter, SusX
from finelens.solvers.tda import TDA
from finelens.solvers.tip_adapter import TipAdapter, TipAdapterF
from finelens.solvers.transclip import TransClip
from finelens.solvers.zlap import ZLaP

SOLVERS: dict[str, type[Solver]] = {
    "gda": Gda,
    "gda-em": GdaEm,
    "stata": StatA,
    "transclip": TransClip,
    "ot": SinkhornOt,
    "self-adaptive-ot": SelfAdaptiveOt,
    "zlap": ZLaP,
    "inmap": InMap,
    "joint-gmm": JointGmm,
    "consensus": Consensus,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "sus-x": SusX,
    "caps-adapter": CapsAdapter,
    "onzeta": OnZeta,
    "tda": TDA,
    "pta": Pta,
    "online-gda": OnlineGda,
}
"""By registry name."""

__all__ = [
    "SOLVERS",
    "TDA",
    "CapsAdapter",
    "Consensus",
    "Gda",
    "GdaEm",
    "InMap",
    "JointGmm",
    "OnZeta",
    "OnlineGda",
    "OnlineSolver",
    "Pta",
    "SelfAdaptiveOt",
    "SinkhornOt",
    "Solver",
    "StatA",
    "SusX",
    "TipAdapter",
    "TipAdapterF",
    "TransClip",
    "ZLaP",
]
