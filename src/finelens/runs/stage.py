"""What comes before a method: another training of both towers. The method starts from what they are then."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finelens.classes.captions import read_captions
from finelens.classes.heads import build_heads
from finelens.classes.made_up import name_texts
from finelens.classes.templates import fill
from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.load import load
from finelens.images.randomness import below, generator
from finelens.methods.parts.frozen import cosine_logits
from finelens.protocol import Loaded
from finelens.runs.alarms import check_text_features
from finelens.runs.config import RunConfig
from finelens.runs.early import check_staged
from finelens.runs.photo_source import PhotoSource
from finelens.runs.prepare import Prepared, with_method
from finelens.runs.source import Source
from finelens.training.refine import Pairs, Refined, encode_pairs, refine
from finelens.training.stage_config import StageConfig


def before_stage(config: RunConfig) -> RunConfig:
    """What is prepared for the stage: the same without the method, which may put towers into a form of its own."""
    return replace(config, method="zero-shot", method_options=None)


def check_stage(config: RunConfig, source: Source, processes: int = 1) -> None:
    """Refuse what a stage cannot do, before anything is loaded.

    Raises:
        UserError: There is no image tower or no text to train, or several processes.
    """
    if config.stage.name == "none":
        return
    check_staged(config.stage, Path(source.name), None if config.prototypes_file is None else Path(config.prototypes_file))
    if processes > 1:
        raise UserError(f"--stage {config.stage.name} runs in one process; start without torchrun, or leave it out")


def run_stage(prepared: Prepared, loaded: Loaded, source: Source, config: RunConfig, console: Console) -> Prepared:
    """Train the towers of what :func:`before_stage` prepared, encode the texts again and make the task of the run's method.

    Args:
        prepared: Of ``before_stage(config)``.
        loaded: The run's images.
        source: Where they came from.
        config: The run.
        console: What to say.

    Raises:
        UserError: There are fewer than two pairs, or the loss is no number any more.
    """
    stage, engine = config.stage, prepared.engine
    console.say(f"stage {stage.name}: from its start (it is not kept between starts, and the same each time)")
    with engine.stopwatch("stage"):
        pairs, start = _of_file(prepared, source, stage, console) if stage.captions else _of_photographs(prepared, loaded, config, console)
        if len(pairs.text) < 2:
            remedy = (
                "give a captions file with more images that can be read" if stage.captions else "give more photographs, or a file with --captions"
            )
            count = counted(len(pairs.text), "pair", "pairs")
            raise UserError(f"stage {stage.name}: {count} of an image and a text; it needs two or more; {remedy}, or leave --stage out")
        refined = refine(engine, pairs, start, stage, config.seed, console)
        heads = build_heads(engine.backbone, prepared.classes).to(engine.device)
        named = name_texts(engine.backbone, prepared.classes)
    check_text_features(heads, prepared.classes.names, console)
    for line in told(refined):
        console.say(f"stage {stage.name}: {line}")
    return replace(with_method(replace(prepared, heads=heads, name_texts=named), config), stage={"name": stage.name, **asdict(refined)})


def told(refined: Refined) -> list[str]:
    """What a person is told of it."""
    before, after = refined.before, refined.after
    towers = "both towers" if refined.text_trained else "the image tower"
    return [
        f"{refined.pairs} pairs, {counted(refined.steps, 'step', 'steps')} of {towers}, loss {refined.loss:.4g}",
        f"modality gap {before.gap:.4f} before, {after.gap:.4f} after (distance of the means of images and texts); "
        f"distance within a pair {before.pair_distance:.4f} before, {after.pair_distance:.4f} after",
    ]


def _of_photographs(prepared: Prepared, loaded: Loaded, config: RunConfig, console: Console) -> tuple[Pairs, Tensor]:
    """The surest photographs of each predicted class with a filled template each, and their features (N, E). No label is looked at."""
    engine, classes = prepared.engine, prepared.classes
    features = FeatureEncoder(engine, prepared.limits.short_side).centre(loaded.store, console, "look at images").global_
    chosen, label = surest(cosine_logits(engine, features, prepared.heads.templates).float().cpu(), config.stage.confident)
    found = zip(chosen.tolist(), label.tolist(), strict=True)
    texts = [_template(classes.templates, classes.names[c], loaded.store.ids[i], config.seed) for i, c in found]
    return Pairs(loaded.store, chosen.numpy(), tuple(texts), label), features[chosen.to(features.device)]


def surest(logits: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The surest share of the images of each predicted class, rounded up.

    Args:
        logits: (N, C).
        share: Above 0 and at most 1.

    Returns:
        Positions, ascending, and predicted classes, (K,) each.
    """
    sure, label = logits.softmax(1).max(1)
    kept = []
    for c in label.unique().tolist():
        own = (label == c).nonzero().flatten()
        order = sure[own].argsort(descending=True, stable=True)
        kept.append(own[order[: math.ceil(share * len(own))]])
    chosen = torch.cat(kept).sort().values if kept else torch.zeros(0, dtype=torch.int64)
    return chosen, label[chosen]


def _template(templates: tuple[str, ...], name: str, sample_id: str, seed: int) -> str:
    return fill(templates[below(generator(seed, 0, sample_id, "stage text"), len(templates))], name)


def _of_file(prepared: Prepared, source: Source, stage: StageConfig, console: Console) -> tuple[Pairs, Tensor]:
    """The pairs of the file whose image can be read, and their features (N, E)."""
    assert isinstance(source, PhotoSource)
    assert stage.captions is not None
    captions = read_captions(Path(stage.captions), source.folder)
    distinct = list(dict.fromkeys(captions.files))
    own = load([str(place) for place in distinct], prepared.limits, console)
    at = {place: record.index for place, record in zip(distinct, own.records, strict=True)}
    pairs = [(index, text) for place, text in zip(captions.files, captions.texts, strict=True) if (index := at[place]) is not None]
    if len(pairs) < len(captions.files):
        left = len(captions.files) - len(pairs)
        first = next(record for record in own.records if record.index is None)
        name = distinct[own.records.index(first)]
        console.warn(
            f"{counted(left, 'caption is', 'captions are')} left out, the first because {name} is no image that can be read ({first.reason})"
        )
    group = {text: g for g, text in enumerate(dict.fromkeys(text for _, text in pairs))}
    found = Pairs(own.store, np.array([i for i, _ in pairs], dtype=np.int64), tuple(t for _, t in pairs), torch.tensor([group[t] for _, t in pairs]))
    return found, encode_pairs(prepared.engine, found, console) if pairs else torch.zeros(0)
