"""The contracts every part of finelens speaks.

Data flows one way: images and classes -> backbone -> method -> predictions -> report. The types here are what crosses each arrow. Nothing in this
module computes; it may be imported by every other module and imports none of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Interpolation = Literal["bicubic", "bilinear", "nearest"]
ResizeMode = Literal["shortest", "squash"]


@dataclass(frozen=True)
class Preprocess:
    """How pixels become the input of an image tower. Read from the model, never assumed.

    Attributes:
        image_size: Side of the square input, in pixels.
        resize_size: Short side (``squash``: both sides) after the resize, before the centre crop (equal to ``image_size`` for CLIP models).
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].
        interpolation: Filter of the resize.
        resize_mode: ``shortest`` keeps the aspect ratio and crops; ``squash`` resizes both sides to ``resize_size``.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


@dataclass(frozen=True)
class ImageTokens:
    """What an image tower returns for a batch.

    Attributes:
        global_: Unit-norm joint-space features, (B, E).
        cls: Global token before the projection, (B, W).
        patches: Patch tokens of the last block's value path (ViT) or cells of the last feature map (convolutional), neither projected nor
            normalised, (B, N, W); None unless asked for.
    """

    global_: Tensor
    cls: Tensor
    patches: Tensor | None = None


class NotAvailableError(RuntimeError):
    """The backbone lacks an optional capability (visual prompts, differentiable text). The message names it and the remedy."""


class Backbone(nn.Module, ABC):
    """A CLIP-like dual encoder behind one interface.

    Modules are always in evaluation mode: normalisation statistics are frozen. All parameters start with ``requires_grad=False``.

    Attributes:
        name: What the user asked for, e.g. ``open_clip:ViT-B-32/openai`` or ``embedded``.
        preprocess: Input geometry and statistics.
        width: Token width W.
        dim: Joint width E.
        grid: Rows and columns of the patch grid at ``preprocess.image_size``.
        logit_scale: Multiplier of cosine similarities (already exponentiated).
        logit_bias: Additive term of the logits (0 unless the model is sigmoid-trained).
        context_length: Longest text in tokens, special tokens included.
        has_token_sequence: Whether visual prompt tokens can be inserted.
        is_convolutional: Whether patches are cells of a feature map.
    """

    name: str
    preprocess: Preprocess
    width: int
    dim: int
    grid: tuple[int, int]
    logit_scale: float
    logit_bias: float
    context_length: int
    has_token_sequence: bool = False
    is_convolutional: bool = False

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into network input on the device the pixels are on.

        Args:
            images: (..., 3, H, W) uint8.

        Returns:
            Same shape, in the parameters' float type, ``(x / 255 - mean) / std``.
        """
        dtype = next(self.parameters()).dtype
        # In one piece of memory: fresh pages cost as much as the arithmetic.
        x = images.to(dtype, copy=True).div_(255)
        mean = torch.tensor(self.preprocess.mean, dtype=torch.float32, device=x.device).to(dtype).view(3, 1, 1)
        std = torch.tensor(self.preprocess.std, dtype=torch.float32, device=x.device).to(dtype).view(3, 1, 1)
        return x.sub_(mean).div_(std)

    @abstractmethod
    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), as :meth:`normalise` returns them.
            patches: Whether to compute patch tokens; they cost extra, so only on request.
            prompts: Visual prompt tokens (P, W), inserted after the class token.

        Raises:
            NotAvailableError: ``prompts`` given to a tower without a token sequence.
        """

    def encode_prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Activations (B, ...) of normalised images (B, 3, S, S) before the last so many blocks: what a ``last-k-norm`` scope leaves frozen.

        Raises:
            NotAvailableError: The tower cannot be entered in the middle.
        """
        raise NotAvailableError(f"the image tower of backbone {self.name!r} cannot be entered in the middle; leave training.cached_prefix at 0")

    def encode_suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """What :meth:`encode_image` returns, from the activations (B, ...) that :meth:`encode_prefix` gave for as many last blocks."""
        raise NotAvailableError(f"the image tower of backbone {self.name!r} cannot be entered in the middle; leave training.cached_prefix at 0")

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E), not normalised."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L). Special tokens written out in a text are escaped; longer texts are truncated to ``context_length``."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens before truncation, special tokens included."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features (T, E), float32, no gradient."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions: the place where learned context vectors enter."""
        raise NotAvailableError(f"backbone {self.name!r} has no differentiable text tower; use a method without learned text context")

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Differentiable text features (T, E), unit norm, from embeddings (T, L, W_text) and the ids that place the pooling token."""
        raise NotAvailableError(f"backbone {self.name!r} has no differentiable text tower; use a method without learned text context")

    def release_text(self) -> None:
        """Give back the memory of the text tower; its methods raise or load it again from here on. Default: nothing to give back."""

    @abstractmethod
    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Named parameters that training a scope of the image tower moves; the caller switches ``requires_grad``.

        Scopes: ``none``, ``norm``, ``last-k-norm`` (k a number), ``lora-r`` (r a rank), ``svd``, ``all``. ``lora-r`` and ``svd`` put the matrices of
        the tower into another form until :meth:`merge`.

        Raises:
            UserError: Unknown scope; the message lists those that exist.
        """

    def tunable_text(self, scope: str) -> dict[str, nn.Parameter]:
        """Named parameters that training a scope of the text tower moves: ``svd`` (singular values of the matrices inside its blocks).

        They count in :meth:`encode_token_embeddings` until :meth:`merge`, which leaves the text tower as it was before.

        Raises:
            UserError: Unknown scope.
            NotAvailableError: There is no text tower, or it cannot be differentiated.
        """
        raise NotAvailableError(f"backbone {self.name!r} has no text tower that can be trained")

    def adapted(self, scope: str) -> Mapping[str, Tensor]:
        """Plain image-tower weights that training a scope changes, by name. Default: the trained parameters themselves."""
        return self.tunable(scope)

    def merge(self) -> None:
        """End the use of a scope: every matrix of the image tower becomes a plain weight again, of the value it has now; the text tower is left as it
        was before. Default: nothing to do.
        """

    def fit_centre(self, cls: Tensor) -> None:
        """Take label-free statistics of the target images from their ``cls`` tokens (N, W). Default: nothing to fit."""

    def fitted_state(self) -> dict[str, Tensor]:
        """Tensors that :meth:`fit_centre` set; copying into them restores the fit. Default: none."""
        return {}

    @abstractmethod
    def image_config(self) -> dict[str, Any]:
        """JSON description from which the image side (tower, projection, preprocessing) can be rebuilt without network or text tower."""

    @abstractmethod
    def image_state(self) -> dict[str, Tensor]:
        """Tensors of the image side, in the order and under the names that the rebuilt tower loads."""


@dataclass(frozen=True)
class ClassSet:
    """Class names and the texts that describe them.

    Attributes:
        names: Class names as the user wrote them, in the user's order.
        templates: Prompt templates; each contains ``{}`` once.
        descriptions: One tuple of sentences per class; empty where the class has none, and templates stand in.
        synonyms: One tuple of further names per class, which fill the templates as its name does; empty where no class has any.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    @property
    def called(self) -> tuple[tuple[str, ...], ...]:
        """Every name of each class, its own first."""
        return tuple((name, *own) for name, own in zip(self.names, self.synonyms or ((),) * len(self.names), strict=True))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class ViewPlan:
    """Which views of an image a method needs at each step."""

    weak: bool = True
    strong: bool = True
    crops: int = 0
    centre: bool = False


@dataclass(frozen=True)
class InferenceViews:
    """Views of an image that an answer needs besides the centre view. They are a function of the image alone.

    Attributes:
        count: Views per image, M.
        kind: ``crops``: squares with sides from ``low`` to ``high`` of the short side; ``resized``: random resized crops with areas from ``low`` to
            ``high`` of the image, flipped half of the time.
        low: Smallest size.
        high: Largest.
    """

    count: int
    kind: Literal["crops", "resized"] = "crops"
    low: float = 0.5
    high: float = 0.9


@dataclass(frozen=True)
class Batch:
    """Views of one step, uint8 on the host until the engine moves them.

    Attributes:
        index: Positions of the images in the store, (B,), int64.
        weak: (B, 3, S, S) or None.
        strong: (B, 3, S, S) or None.
        crops: (B, M, 3, S, S) or None.
        centre: The view that predictions use, (B, 3, S, S) or None.
    """

    index: Tensor
    weak: Tensor | None = None
    strong: Tensor | None = None
    crops: Tensor | None = None
    centre: Tensor | None = None


@dataclass(frozen=True)
class ImageRecord:
    """What became of one input.

    Attributes:
        name: Path relative to the folder, or ``[i]`` for the i-th item in memory.
        status: One of ``schemas.STATUSES``.
        reason: Why there is no image; for ``ok`` the notes of the conversion, empty when there are none.
        sample_id: Identity by content; None unless ``ok``.
        index: Position in the store; None unless ``ok``.
    """

    name: str
    status: str
    reason: str = ""
    sample_id: str | None = None
    index: int | None = None


class ImageStore(Protocol):
    """Decoded originals without labels, ordered by sample id."""

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids, sorted: functions of the images' content."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """The image, (3, H, W) uint8, short side capped."""
        ...


@runtime_checkable
class Rows(Protocol):
    """Features of very many images, read some at a time and as often as wanted; memory does not hold them all."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each feature space, which lie side by side; the first is the one of the prototypes."""
        ...

    def __len__(self) -> int:
        """How many images there are, N."""
        ...

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order, float32, ``size`` at a time, the last fewer: (n, D_1 + ... + D_V)."""
        ...

    def at(self, positions: Tensor) -> Tensor:
        """Some rows, (n, D_1 + ... + D_V), float32."""
        ...


class Loaded(Protocol):
    """Images that a method can be fitted to: one record per input, and the good ones in a store."""

    @property
    def store(self) -> ImageStore:
        """The good ones, ordered by sample id."""
        ...

    @property
    def records(self) -> list[ImageRecord]:
        """One per input, in its order."""
        ...

    @property
    def by_content(self) -> bool:
        """Whether sample ids are hashes of the photographs' bytes."""
        ...

    @property
    def pictures(self) -> dict[str, int]:
        """Positions of the images that can be shown, by name."""
        ...


@dataclass(frozen=True)
class Cost:
    """Work of one image, in forwards of the image tower.

    Attributes:
        no_grad_forwards: Without gradient, in each epoch.
        grad_forwards: With gradient, in each epoch.
        once: Without gradient, in :meth:`Task.prepare`; a task that has any trains on all images.
        after: Without gradient, after the last epoch, for :meth:`Task.end_training`.
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
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup_epochs: int = 0


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

    def tested(self) -> tuple[Tensor, Tensor] | None:
        """What hints test: the classes that the images with a hint of a class get without any hint, and from models that have not learnt their own.

        Returns:
            (K,) each, in the order of the hints that name a class, known after :meth:`prepare`; None for a method that does not tell.
        """
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

    def end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Work after the last step of an epoch; returns plain numbers to log."""
        return {}

    def finished(self) -> bool:
        """Whether to end before the last epoch. Asked after :meth:`end_epoch` and on resume: what it rests on is state. Default: no."""
        return False


@dataclass(frozen=True)
class Hints:
    """Classes that a person gave for a few of the target images, on purpose: the support set of few-shot methods, fixed pseudo-labels of the others.

    Attributes:
        index: Positions in the store, ascending, (K,), int64.
        label: Class of each, (K,), int64; -1 where the person said "none of these classes".
    """

    index: Tensor
    label: Tensor


class FeatureRows(Tensor):
    """Rows (B, E + W) of ``global_`` and ``cls`` side by side, as the unadapted tower gave them: what ``Task.predict_logits`` and
    ``Engine.encode_frozen`` take in the place of pixels. A task that takes features of further encoders finds them behind these columns.
    """


class PrefixRows(Tensor):
    """Activations (B, ...) before the last blocks of the tower, see :meth:`Backbone.encode_prefix`: what the engine takes in the place of views."""


@dataclass(frozen=True, eq=False)
class Support:
    """Images from outside the target set, with their classes.

    Attributes:
        features: (K, E).
        labels: Class of each, (K,), int64.
        captions: Text features of what each image shows, (K, E); None without.
    """

    features: Tensor
    labels: Tensor
    captions: Tensor | None = None


@dataclass(frozen=True)
class TargetFeatures:
    """One no-gradient pass over the unlabelled images with the unadapted backbone, centre view.

    Attributes:
        global_: (N, E) unit norm, float32, in store order.
        cls: (N, W) float32.
        hints: What the user gave with ``--hints``; None in a run without.
        views: Gives the centre views of the same images in another tower's geometry, uint8 batches (B, 3, S, S) in store order.
        first_views: Gives the views that the first epoch has of the same images, in store order.
        support: What the user gave with ``method.support``; None in a run without.
        extra: Features of further encoders, (N, D_v) each; none in a run without ``--extra``.
        rows: ``global_`` of all images of a run of so many that the others here are of a part, see ``feature_store.sampled``; else None.
        cls_rows: ``cls`` of all of them then.
    """

    global_: Tensor
    cls: Tensor
    hints: Hints | None = None
    views: Callable[[Preprocess], Iterator[Tensor]] | None = None
    first_views: Callable[[ViewPlan], Iterator[Batch]] | None = None
    support: Support | None = None
    extra: tuple[Tensor, ...] = ()
    rows: Rows | None = None
    cls_rows: Rows | None = None
