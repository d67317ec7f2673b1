"""A method: what it learns, how a step is computed, how it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from finelens.protocol.features import FeatureRows, TargetFeatures, Tested
from finelens.protocol.views import Batch, InferenceViews, ViewPlan


@dataclass(frozen=True)
class Cost:
    """Work of one image, in forwards of the image tower.

    Attributes:
        no_grad_forwards: Without gradient, in each epoch.
        grad_forwards: With gradient, in each epoch.
        once: Without gradient, in :meth:`Task.prepare`; a task that has any trains on all images.
        after: Without gradient, between epochs and after the last, for :meth:`Task.look` and :meth:`Task.end_training`.
    """

    no_grad_forwards: float
    grad_forwards: float
    once: float = 0
    after: float = 0


@dataclass(frozen=True)
class StepOutput:
    """Result of one training step.

    Attributes:
        loss: Scalar with gradient.
        log: Numbers of which the loop takes the mean over the images of an epoch; scalars may stay on their device, and keep their graph.
        pseudo_labels: Class that each image was trained towards, (B,), int64, for the collapse alarm; None for a method without.
    """

    loss: Tensor
    log: Mapping[str, float | Tensor] = field(default_factory=dict)
    pseudo_labels: Tensor | None = None


@dataclass(frozen=True)
class Optimisation:
    """How the loop moves the parameters of a task.

    Attributes:
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9.
        warmup_epochs: First epochs at a constant, very small rate; none if there are no further epochs.
        restart_epochs: Epochs after which rate and optimiser begin anew (warm restarts, Loshchilov and Hutter 2017); 0 for one descent over all.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup_epochs: int = 0
    restart_epochs: int = 0


class Task(nn.Module, ABC):
    """One method: what it learns, how a step is computed, how it predicts. The loop owns everything else.

    A task registers its own parameters and buffers as usual, so ``state_dict`` covers what it learns; the backbone is held outside the module tree.

    Args:
        engine: The :class:`~finelens.engine.engine.Engine` that runs the backbone.

    Attributes:
        views: Views each step needs.
        inference: Views an answer needs besides the centre view; None for most methods.
        optimisation: Optimiser and warm-up.
        needs_text: Whether training encodes texts; the text tower is released before it where it does not.
        takes_loss: Whether ``training.loss`` is heeded.
        loss_form: The :class:`~finelens.training.loss_form.LossForm` of such a task.
        asks_unadapted: Whether an answer rests on what the unadapted tower makes of the image as well; such a task answers in :meth:`predict_beside`.
    """

    views: ViewPlan
    inference: InferenceViews | None = None
    optimisation: Optimisation = Optimisation()
    needs_text: bool = False
    takes_loss: bool = False
    loss_form: Any
    asks_unadapted: bool = False
    engine: Any

    def __init__(self, engine: Any) -> None:
        super().__init__()
        # Held outside the module tree: the backbone is saved on its own.
        object.__setattr__(self, "engine", engine)

    @abstractmethod
    def prepare(self, features: TargetFeatures) -> None:
        """Build heads, banks and prototypes before the loop. Called once in a fresh run and never on resume."""

    def subset(self) -> Tensor | None:
        """Positions that training visits, (K,), int64, known after :meth:`prepare` or on resume; None for the whole store."""
        return None

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: ``params`` (named), ``weight_decay``, optionally ``lr_scale``."""

    @abstractmethod
    def step(self, batch: Batch, epoch: int, step_in_epoch: int) -> StepOutput:
        """Compute the loss of one batch.

        A step is repeated when memory runs out: buffers that it replaced are put back first; rows that it writes in place must follow from the batch.
        """

    @abstractmethod
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C), float32, of uint8 centre views (B, 3, S, S), by branch; ``logits`` is the method's answer, other keys are its parts."""

    def predict_from_views(self, images: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Logits by branch, (B, C), from centre views and further uint8 views (B, M, 3, S, S); a task that sets ``inference`` answers here."""
        raise NotImplementedError(f"{type(self).__name__} answers from the centre view alone")

    def tested(self) -> Tested | None:
        """What the hints of a class say of the method, known after :meth:`prepare`; None for a method that does not tell."""
        return None

    def predict_beside(self, images: Tensor, unadapted: FeatureRows) -> dict[str, Tensor]:
        """Logits by branch, (B, C), from centre views and the unadapted tower's features of them; asked where ``asks_unadapted`` is set."""
        raise NotImplementedError(f"{type(self).__name__} answers from the adapted tower alone")

    def attention_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Where the method looks in uint8 centre views (B, 3, S, S), for the report: maps (B, N) in [0, 1] over the patch grid, by name."""
        return {}

    def crop_weights(self, images: Tensor, crops: Tensor) -> Tensor | None:
        """How much each of the crops (B, M, 3, S, S) weighs in the label of its image, (B, M); None for a method without crops. For the report."""
        return None

    @abstractmethod
    def cost(self) -> Cost:
        """Forwards per image, for the estimate before a run."""

    def prediction_state(self) -> dict[str, Tensor]:
        """What :meth:`predict_logits` needs besides the backbone; saved with the model."""
        return dict(self.state_dict())

    def notes(self) -> Sequence[str]:
        """What :meth:`prepare` decided and the user should know, one line each."""
        return ()

    def end_training(self, features: TargetFeatures) -> None:
        """Work after the last epoch of a task whose cost has forwards there, also where the run was resumed.

        Args:
            features: Of the images of the fit by the tuned tower, with the hints.
        """

    def looks_after(self, epoch: int) -> bool:
        """Whether :meth:`look` is to be called after this epoch, which is not the last. Default: no."""
        return False

    def look(self, features: TargetFeatures) -> None:
        """Work between two epochs on what the tuned tower makes of the images; all that it leaves is state.

        Args:
            features: Of the images of the fit by the tower as it is, with the hints.
        """

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Work after the last step of an epoch; returns plain numbers to log."""
        return {}

    def finished(self) -> bool:
        """Whether to end before the last epoch. Asked after :meth:`end_epoch` and on resume: what it rests on is state. Default: no."""
        return False
