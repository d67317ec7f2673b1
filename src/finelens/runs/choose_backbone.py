"""``--backbone A,B,C``: several models are asked about some of the photographs, and the one that agrees most with the others is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelens.backbones.registry import absolute_spec
from finelens.classes.hints import names_of_run
from finelens.core.console import Console, Mute
from finelens.errors import UserError
from finelens.evaluation.encoder_rank import Ranked, Seen, rank_encoders
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.load import count_images
from finelens.images.store import load_images
from finelens.methods.parts.frozen import cosine_logits
from finelens.runs.config import RunConfig
from finelens.runs.photo_source import PhotoSource
from finelens.runs.prepare import prepare
from finelens.runs.source import Source
from finelens.runs.sources import source_of_run

# Photographs that are looked at with each of the models; the run finds their features in the cache.
MOST = 300


@dataclass(frozen=True)
class BackboneChoice:
    """The model that was taken, and why.

    Attributes:
        spec: Its specification.
        ranked: All of them, best first.
        images: Photographs that were looked at.
    """

    spec: str
    ranked: tuple[Ranked, ...]
    images: int

    @property
    def reason(self) -> str:
        """One line."""
        shares = "; ".join(f"{one.name} {one.agreement:.0%}" for one in self.ranked)
        decided = "answers most often as the vote of the others does"
        if len(self.ranked) == 2:
            decided = "has its classes lie as their texts do more than the other; of two, agreement says nothing, give three"
        return f"of {len(self.ranked)} models {self.spec} {decided} (share of {self.images} photographs: {shares})"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the log of the run."""
        return {"reason": self.reason, "ranked": [vars(one) for one in self.ranked]}


def rank_of_run(specs: Sequence[str], config: RunConfig, console: Console) -> BackboneChoice:
    """:func:`choose_backbone` with the photographs, names and descriptions of a run.

    Raises:
        UserError: As :func:`choose_backbone`.
    """
    source = source_of_run(config)
    _check(config, source)
    classes, hints = (None if file is None else Path(file) for file in (config.classes_file, config.hints_file))
    return choose_backbone(
        [absolute_spec(spec) for spec in specs], config, names_of_run(classes, hints)[0], config.descriptions_file, source, console
    )


def choose_backbone(
    specs: Sequence[str],
    config: RunConfig,
    names: Sequence[str],
    descriptions: str | Path | Mapping[str, Any] | None,
    source: Source,
    console: Console,
) -> BackboneChoice:
    """Rank models on the user's own photographs, without labels.

    Args:
        specs: At least two, as ``load_backbone`` takes them.
        config: The run, with any of them.
        names: Class names.
        descriptions: Sentences about the classes.
        source: The photographs.
        console: Progress, and the ranking.

    Raises:
        UserError: There are no photographs, prototypes stand for the texts, or a model cannot be loaded.
    """
    photographs = _check(config, source)
    count = count_images(photographs.inputs)
    picked = [photographs.inputs[i] for i in range(0, count, max(1, math.ceil(count / MOST)))]
    seen: list[Seen] = []
    ids: Sequence[str] = ()
    for spec in specs:
        prepared = prepare(replace(config, backbone=spec), names, descriptions, Mute(), source)
        store = load_images(picked, prepared.limits).store
        if not len(store) or (seen and list(store.ids) != list(ids)):
            raise UserError(f"--backbone: none of {len(picked)} photographs can be read, or not the same ones for all; name one model")
        ids = store.ids
        engine = prepared.engine
        features = engine.centre(FeatureEncoder(engine, prepared.limits.short_side).centre(store, console, f"look at images with {spec}"))
        head = prepared.heads.templates if prepared.report is None else prepared.heads.descriptions
        answers = cosine_logits(engine, features.global_, head).softmax(1)
        seen.append(Seen(spec, answers.float().cpu(), features.global_.cpu(), head.cpu()))
    ranked, _ = rank_encoders(seen)
    choice = BackboneChoice(ranked[0].name, tuple(ranked), len(ids))
    for one in ranked:
        console.say(f"  {one.line()}")
    console.say(f"backbone: {choice.reason}")
    return choice


def _check(config: RunConfig, source: Source) -> PhotoSource:
    if not isinstance(source, PhotoSource) or config.prototypes_file is not None or config.in_file is not None:
        raise UserError("--backbone A,B ranks models by photographs and class texts: give photographs, without --prototypes or --in")
    return source
