"""A backbone without towers: features come from a file, and prototypes in the place of texts."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from finelens.backbones.without_texts import WithoutTexts
from finelens.errors import UserError
from finelens.protocol import ImageTokens, Preprocess

KIND = "features"


class FeatureBackbone(WithoutTexts):
    """Stands for a model of which only the features are known. The joint space is that of the features.

    Args:
        dim: Feature width D.
        logit_scale: Multiplier of cosines.
        logit_bias: Additive term of the logits.
        source: What the features were made with, where the file says so.
        tower: Digest of the tower that made them; empty where it is not known.
        width: Columns W of the tokens beside them; by default the features stand for tokens.
    """

    def __init__(self, dim: int, logit_scale: float, logit_bias: float = 0.0, source: str = "", tower: str = "", width: int | None = None) -> None:
        super().__init__()
        self.name = KIND
        # Never applied: there are no pixels.
        self.preprocess = Preprocess(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.width, self.dim, self.grid = dim if width is None else width, dim, (1, 1)
        self.logit_scale, self.logit_bias, self.context_length = logit_scale, logit_bias, 0
        self.source, self.tower = source, tower

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureBackbone:
        """Rebuild from what :meth:`image_config` returned."""
        return cls(**{key: config[key] for key in ("dim", "logit_scale", "logit_bias", "source", "tower")}, width=config.get("width"))

    def refuse_pixels(self) -> NoReturn:
        """Say how photographs can be classified all the same."""
        command = f" (finelens features PHOTOS --backbone {self.source} --out F.safetensors)" if self.source else ""
        raise UserError(f"this run was made on features and has no image tower: encode photographs with that model{command} and give the features")

    def normalise(self, images: Tensor) -> Tensor:
        """Refuses: there are no pixels."""
        self.refuse_pixels()

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Refuses: there is no image tower."""
        self.refuse_pixels()

    def _no_texts(self) -> NoReturn:
        raise UserError(
            "prototypes stand for the classes and there is no text tower: choose a method that writes no texts of its own, such as zero-shot"
        )

    def image_config(self) -> dict[str, Any]:
        """JSON description of what computed the features."""
        return {
            "kind": KIND,
            "name": self.name,
            "dim": self.dim,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "source": self.source,
            "tower": self.tower,
            **({} if self.width == self.dim else {"width": self.width}),
        }

    def image_state(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}
