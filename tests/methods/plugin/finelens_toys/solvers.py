import torch

from finelens.errors import UserError
from finelens.protocol import Support
from finelens.solvers import JointGmm, OnlineSolver, Solver
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE


class ToyMeans(Solver):
    """Text logits, and the cosine with the class means of the posterior.

    Args:
        weight: Of the cosine, in logits of the text.
        chunk_size: Not used.
    """

    state_names = ("coef_",)
    _parameter_constraints = {"weight": NOT_NEGATIVE, "chunk_size": COUNT}  # noqa: RUF012

    def __init__(self, *, weight: float = 0.5, chunk_size: int = 1024):
        self.weight = weight
        self.chunk_size = chunk_size

    def _fit(self, x, prototypes, scale, known):
        z = known.clamp((scale * x @ prototypes.T).log_softmax(1)).exp()  # (N, C)
        means = torch.nn.functional.normalize(self._first(prototypes) + z.T @ x, dim=1)  # (C, D)
        self.coef_ = scale * (prototypes + self.weight * means)
        return self._log_proba(x)

    def _first(self, prototypes):
        return torch.zeros_like(prototypes)

    def _log_proba(self, x):
        return (x @ self.coef_.to(x).T).log_softmax(1)


class ToySupport(ToyMeans):
    """Class means in which the images of a support set count.

    Args:
        support: Features and classes.
        weight: See :class:`ToyMeans`.
        chunk_size: Not used.
    """

    internal = Solver.internal | {"support"}
    _parameter_constraints = {**ToyMeans._parameter_constraints, "support": [Support, None]}  # noqa: RUF012

    def __init__(self, *, support: Support | None = None, weight: float = 0.5, chunk_size: int = 1024):
        super().__init__(weight=weight, chunk_size=chunk_size)
        self.support = support

    def _first(self, prototypes):
        if self.support is None:
            raise UserError("ToySupport needs a support set")
        return torch.zeros_like(prototypes).index_add_(0, self.support.labels, self.support.features.to(prototypes))


class ToyExtra(JointGmm):
    """A solver of several views."""


class ToyStream(OnlineSolver):
    """Text logits, and the cosine with running class means.

    Args:
        seed: Order of the rows in ``fit``.
        chunk_size: New images in work at a time.
    """

    state_names = ("text_", "sums_")

    def _begin(self, prototypes, scale):
        self.text_, self.sums_ = scale * prototypes, torch.zeros_like(prototypes)

    def _arrive(self, x, label):
        answer = self._score(x[None])[0]
        p = answer.exp() if label is None else torch.nn.functional.one_hot(torch.tensor(label), len(answer)).to(x)
        self.sums_ = self.sums_ + torch.outer(p, x)
        return answer

    def _score(self, x):
        return (x @ (self.text_ + torch.nn.functional.normalize(self.sums_, dim=1)).T).log_softmax(1)
