"""Options of NoLA. Which of them the source states is in the table of docs/methods/nola.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finelens.backbones.registry import ENCODER_FORMS, absolute_spec, is_encoder_spec
from finelens.core.home import expanded
from finelens.core.options import require
from finelens.methods.parts.student import StudentConfig

SELF = "self"
FORMS = f"{SELF}, {ENCODER_FORMS}"


@dataclass(frozen=True)
class NolaConfig(StudentConfig):
    """Options of the method (``--set method.key=value``), beside those of :class:`StudentConfig`.

    Attributes:
        prompts: Visual prompt tokens, where the tower has a token sequence.
        keep_share: Images that teach the labelling network, as a share of the images per class.
        keep_min: At least so many per class.
        keep_max: At most so many per class.
        second_encoder: What the labelling network sees: ``self`` (the run's own unadapted image tower), or an encoder by name as ``--extra-encoder``
            takes it, e.g. ``embedded``, ``timm:NAME@FILE`` or ``local:DIR``.
        second_checkpoint: The safetensors file of ``timm:NAME``, where it does not stand behind the name.
        labelling_epochs: Epochs of the labelling network.
        stop: ``epochs`` trains for ``training.epochs``; ``agreement`` ends earlier when student and teacher no longer agree more on held-out images.
        held_out: Share of the images that ``agreement`` keeps out of the training.
        patience: Epochs without a new highest agreement after which ``agreement`` ends.
    """

    prompts: int = 16
    keep_share: float = 0.2
    keep_min: int = 16
    keep_max: int = 512
    second_encoder: str = "self"
    second_checkpoint: str | None = None
    labelling_epochs: int = 50
    stop: Literal["epochs", "agreement"] = "epochs"
    held_out: float = 0.1
    patience: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.keep_share <= 1, "method.keep_share", "from 0 to 1", self.keep_share)
        require(self.keep_min >= 1, "method.keep_min", "at least 1", self.keep_min)
        require(self.keep_max >= self.keep_min, "method.keep_max", f"at least method.keep_min ({self.keep_min})", self.keep_max)
        require(self.labelling_epochs >= 1, "method.labelling_epochs", "at least 1", self.labelling_epochs)
        require(0 < self.held_out < 1, "method.held_out", "between 0 and 1", self.held_out)
        require(self.patience >= 1, "method.patience", "at least 1", self.patience)
        known = self.second_encoder == SELF or is_encoder_spec(self.second_encoder)
        require(known, "method.second_encoder", FORMS, self.second_encoder)
        # A run can be resumed from any folder.
        object.__setattr__(self, "second_encoder", absolute_spec(self.second_encoder))
        if self.second_checkpoint is not None:
            usable = self.second_encoder.startswith("timm:") and "@" not in self.second_encoder
            require(usable, "method.second_checkpoint", f"left out with method.second_encoder={self.second_encoder}", self.second_checkpoint)
            object.__setattr__(self, "second_checkpoint", str(expanded(self.second_checkpoint).absolute()))

    @property
    def second_spec(self) -> str:
        """The second encoder with its file, as :func:`~finelens.backbones.registry.load_encoder` takes it; ``self`` for the run's own tower."""
        return self.second_encoder if self.second_checkpoint is None else f"{self.second_encoder}@{self.second_checkpoint}"

    def keep(self, images: int, classes: int) -> int:
        """Images per class that teach the labelling network: ``max(keep_min, floor(keep_share N / C))``, at most ``keep_max``."""
        return min(self.keep_max, max(self.keep_min, int(self.keep_share * images / classes)))
