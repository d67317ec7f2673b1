"""What a fitted classifier says of another list of classes: some of those of the fit, and new ones that have nothing but a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finelens.errors import UserError


@dataclass(frozen=True)
class OtherClasses:
    """Another list of classes.

    The text says how likely an image is of a class of the fit at all, and among those the classifier decides as before:
    ``p'(c | x) = a_kept(x) p(c | x) / p_kept(x)`` for a class that is kept, ``p'(c | x) = a(c | x)`` for a new one, with a the text posterior over
    the other list, and ``a_kept``, ``p_kept`` the sums over the kept classes. Without a new class this is p given that one of the kept is true.

    Attributes:
        kept: For each class of the other list its index among those of the fit, -1 where it is new, (C',), int64.
        text: Scaled prototypes (C', E).
    """

    kept: Tensor
    text: Tensor

    @property
    def new(self) -> bool:
        """Whether there is a new class."""
        return bool((self.kept < 0).any())

    def answer(self, logits: Tensor, x: Tensor | None) -> Tensor:
        """Logits (N, C') of logits (N, C) for the classes of the fit.

        Args:
            logits: Of the classifier.
            x: Unit-norm features (N, E); not needed without a new class.
        """
        kept = self.kept.to(logits.device)
        old = kept >= 0
        if bool(old.all()):
            return logits[:, kept]
        assert x is not None
        answers = (x @ self.text.to(x).T).to(logits).log_softmax(1)  # (N, C')
        if bool(old.any()):
            among = logits[:, kept[old]].log_softmax(1)
            answers[:, old] = answers[:, old].logsumexp(1, keepdim=True) + among
        return answers


def check_kept(kept: Sequence[int], classes: int, wanted: int) -> Tensor:
    """Positions in the list of the fit as a tensor.

    Raises:
        UserError: They are not what :class:`OtherClasses` takes.
    """
    found = torch.tensor(list(kept), dtype=torch.int64)
    old = found[found >= 0]
    if len(found) != wanted or not wanted or bool((found < -1).any()) or bool((old >= classes).any()) or len(old.unique()) != len(old):
        raise UserError(
            f"kept must give for each of the {wanted} prototypes its class of the fit, from 0 to {classes - 1} and each once, or -1 for a new class"
        )
    return found
