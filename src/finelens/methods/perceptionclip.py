"""PerceptionCLIP (An et al., ICLR 2024, arXiv 2308.01313). Documentation: docs/methods/perceptionclip.md.

Shapes: B images, C classes, Z combinations of contextual factors, E joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.classes.templates import DEFAULT_TEMPLATES, fill
from finelens.classes.text_files import quote, read_user_json
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.parts.frozen import WrittenTask
from finelens.protocol import Backbone
from finelens.training.config import TrainingConfig

Factors = Mapping[str, Mapping[str, Sequence[str]]]

# The empty phrase of a factor says nothing about it. Words that any photograph may be described with, whatever it shows.
DEFAULT_FACTORS: Factors = {
    "quality": {"unsaid": [""], "clear": ["sharp and clear", "in focus"], "poor": ["blurry", "of low quality"]},
    "framing": {"unsaid": [""], "near": ["close up", "seen from nearby"], "far": ["far away", "small in the picture"]},
    "light": {"unsaid": [""], "bright": ["in bright light", "on a sunny day"], "dark": ["in the dark", "in dim light"]},
}
MAX_COMBINATIONS = 1000


@dataclass(frozen=True)
class PerceptionClipConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        context: How the context is inferred: ``with-class`` sums over the classes, ``without-class`` asks a prompt with a generic noun.
        temperature: Divisor of the logits in the context posterior.
        noun: The generic noun of ``without-class``.
        factors: JSON file ``{factor: {value: [phrase, ...]}}``; null for the built-in ones.
    """

    context: Literal["with-class", "without-class"] = "with-class"
    temperature: float = 1.0
    noun: str = "object"
    factors: str | None = None

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "method.temperature", "above 0 and finite", self.temperature)
        require(bool(self.noun.strip()), "method.noun", "a word", self.noun)
        if self.factors is not None:
            # A run can be resumed from any folder.
            object.__setattr__(self, "factors", str(Path(self.factors).absolute()))


CONFIG = PerceptionClipConfig


def build(engine: Engine, heads: ClassHeads, config: PerceptionClipConfig, training: TrainingConfig, seed: int) -> PerceptionClip:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    task = PerceptionClip(engine, config)
    if heads.classes is not None:
        task.write(heads.classes.names)
    return task


class PerceptionClip(WrittenTask):
    """Infers how a photograph was taken and classifies under each such context.

    Attributes:
        head: Unit-norm features of each class in each context, (C, Z, E).
        generic: Unit-norm features of the generic noun in each context, (Z, E).
    """

    written = ("head", "generic")
    config: PerceptionClipConfig
    head: Tensor
    generic: Tensor

    @torch.no_grad()
    def write(self, names: Sequence[str]) -> None:
        """Encode the classes and the generic noun in every context.

        Raises:
            UserError: The file of factors cannot be used.
        """
        factors = DEFAULT_FACTORS if self.config.factors is None else read_factors(Path(self.config.factors))
        encoded = torch.stack([context_features(self.engine.backbone, name, factors) for name in [*names, self.config.noun]])
        self.head, self.generic = encoded[:-1].to(self.engine.device), encoded[-1].to(self.engine.device)

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``log p(y|x) = log sum_z p(z|x) p(y|z,x)``."""
        return {"logits": self.log_posterior(self.engine.encode_frozen(images).global_)}

    def log_posterior(self, features: Tensor) -> Tensor:
        """``log p(y|x)``, (B, C), of unit-norm features (B, E); sums of exponentials stay in the log domain."""
        scale, temperature = self.engine.backbone.logit_scale, self.config.temperature
        logits = scale * torch.einsum("be,cze->bcz", features, self.head)
        if self.config.context == "with-class":
            context = torch.logsumexp(logits / temperature, dim=1)  # (B, Z)
        else:
            context = scale * features @ self.generic.T / temperature  # (B, Z)
        return torch.logsumexp(context.log_softmax(-1)[:, None] + logits.log_softmax(1), dim=2)  # (B, C)


def context_features(backbone: Backbone, name: str, factors: Factors) -> Tensor:
    """Features (Z, E) of a name in every combination of the factors' values; the phrasings of one combination are averaged."""
    rows = []
    for values in product(*(values.values() for values in factors.values())):
        features = backbone.encode_text([context_prompt(name, phrases) for phrases in product(*values)])
        rows.append(F.normalize(features.mean(0), dim=-1))  # (E,)
    return torch.stack(rows)  # (Z, E)


def context_prompt(name: str, phrases: Sequence[str]) -> str:
    """``"a photo of a {name}, {phrase}, {phrase}."``; empty phrases leave no comma."""
    main = fill(DEFAULT_TEMPLATES[0], name).rstrip(".")
    return ", ".join([main, *(phrase for phrase in phrases if phrase)]) + "."


def read_factors(path: Path) -> Factors:
    """Read ``{factor: {value: [phrase, ...]}}``.

    Raises:
        UserError: The file cannot be read, has another form, or has too many combinations.
    """
    content = read_user_json(path, "factors file")
    where = f"factors file {quote(str(path))}"
    if not isinstance(content, dict) or not content or not all(_is_factor(values) for values in content.values()):
        raise UserError(f"{where} must be a JSON object {{factor: {{value: [phrase, ...]}}}}, each with at least one value and one phrase")
    combinations = math.prod(sum(len(phrases) for phrases in values.values()) for values in content.values())
    if combinations > MAX_COMBINATIONS:
        raise UserError(f"{where} has {combinations} combinations of phrases for each class, at most {MAX_COMBINATIONS} are allowed; leave some out")
    return content


def _is_factor(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and bool(values)
        and all(isinstance(phrases, list) and phrases and all(isinstance(text, str) for text in phrases) for phrases in values.values())
    )
