"""A finished run's model for another list of classes: names come and go without a new run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.classes.names import check_names, match
from finelens.classes.text_files import counted, listing, quote
from finelens.core.console import Console
from finelens.engine.device import Precision
from finelens.errors import UserError
from finelens.feature_store.paths import is_feature_path
from finelens.methods.method import NEW_CLASSES
from finelens.methods.parts.other_classes import with_classes
from finelens.protocol import TargetFeatures, Task
from finelens.runs.config import RunConfig
from finelens.runs.model import Model
from finelens.runs.photo_source import PHOTOGRAPHS
from finelens.runs.prepare import Prepared, prepare
from finelens.runs.sources import source_of_run


def model_with_classes(
    model: Model,
    config: RunConfig,
    names: Sequence[str],
    console: Console,
    *,
    descriptions: str | Path | None = None,
    prototypes: str | Path | None = None,
) -> Model:
    """The model for another list of classes; classes that are kept keep their text vectors to the bit.

    To encode the texts of new names the run's backbone is loaded; where names only go, nothing is.

    Args:
        model: Of the finished run.
        config: Of the run: backbone, templates and seed are its own.
        names: The other list.
        console: What is said.
        descriptions: JSON file of sentences about the classes; without it the one that the run was given. Templates stand in for a name without any.
        prototypes: File of prototypes of the other list, for a run that was given prototypes.

    Raises:
        UserError: The method has no answer for new names, or what their texts need cannot be had.
    """
    # From which likeness on a photograph is of none of the classes was found for the run's own.
    model = replace(model, none_of_these=None)
    names = check_names(names, source="the other list of classes")
    places, same = {name: c for c, name in enumerate(model.class_names)}, match(names, model.class_names)
    kept = torch.tensor([places[same[name]] if name in same else -1 for name in names])
    new, method = [name for name in names if name not in same], model.entry
    gone = len(model.class_names) - len(same)
    console.say(f"classes: {len(same)} of the run are kept, {gone} go, {counted(len(new), 'is new', 'are new')}")
    training = replace(model.training, scope="none", cached_prefix=0)
    if not new:
        heads = {name: head[kept] for name, head in model.zero_shot_heads.items()}
        task = with_classes(method, model.task, kept, _class_heads(heads), model.method_options, training)
        return replace(model, task=task, class_names=tuple(names), zero_shot_heads=heads)
    if config.stage.name != "none":
        raise UserError(
            f"new class names ({listing([quote(name) for name in new])}) need texts, and the text tower that --stage {config.stage.name} left is not "
            "kept: give names of the run only, or adapt again with the longer list"
        )
    console.say(f"new classes ({listing([quote(name) for name in new])}): {NEW_CLASSES[method.new_classes]}")
    if method.new_classes == "refused":
        with_classes(method, model.task, kept, _class_heads(model.zero_shot_heads), model.method_options, training)
    prepared = _prepared(model, config, names, console, descriptions, prototypes)
    heads = {name: _rows(head, kept, getattr(prepared.heads, name)) for name, head in model.zero_shot_heads.items()}
    if method.new_classes == "rebuilt":
        task = _ready(prepared)
        return replace(model, engine=prepared.engine, task=task, class_names=tuple(names), zero_shot_heads=heads)
    task = with_classes(method, model.task, kept, _class_heads(heads), model.method_options, training)
    return replace(model, task=task, class_names=tuple(names), zero_shot_heads=heads)


def _prepared(
    model: Model, config: RunConfig, names: Sequence[str], console: Console, descriptions: str | Path | None, prototypes: str | Path | None
) -> Prepared:
    """Texts of the other list, encoded by the run's backbone as the run did; and the task of a method that rests on nothing else.

    Raises:
        UserError: The run was given prototypes, and there are none for the other list; or a file is gone.
    """
    if (config.prototypes_file is None) != (prototypes is None):
        raise UserError(
            "the run was made with prototypes in the place of texts: give those of the other list with --prototypes FILE"
            if prototypes is None
            else "--prototypes stand for texts, and the run was made with texts; leave them out"
        )
    given = descriptions if descriptions is not None else config.descriptions_file
    if given is not None and not Path(given).is_file():
        raise UserError(f"the run's descriptions, {given}, are gone; give a file with --descriptions")
    wanted = replace(
        config,
        device=str(model.engine.device),
        prototypes_file=None if prototypes is None else str(prototypes),
        training=replace(model.training, scope="none", cached_prefix=0),
        descriptions_file=None if given is None else str(given),
    )
    # Only a method of texts alone is built anew; of others the texts are needed, and nothing that the method asks for besides.
    anew = model.entry.new_classes == "rebuilt"
    wanted = replace(wanted, method=model.method if anew else "zero-shot", method_options=model.method_options if anew else None)
    source = source_of_run(config) if is_feature_path(Path(config.photos)) else PHOTOGRAPHS
    prepared = prepare(wanted, names, None if given is None else Path(given), console, source)
    prepared.engine.precision = Precision(model.engine.precision.dtype, model.engine.precision.reason)
    return prepared


def _ready(prepared: Prepared) -> Task:
    """The task of a method of texts alone, which looks at no image."""
    backbone = prepared.engine.backbone
    prepared.task.prepare(TargetFeatures(torch.zeros(1, backbone.dim), torch.zeros(1, backbone.width)))
    return prepared.task


def _rows(head: Tensor, kept: Tensor, other: Tensor) -> Tensor:
    """Rows (C', E) of the run's head (C, E) where a class is kept, else of the other list's (C', E)."""
    old = (kept >= 0)[:, None].to(head.device)
    return torch.where(old, head[kept.clamp_min(0)], other.to(head))


def _class_heads(heads: dict[str, Tensor]) -> ClassHeads:
    """Two heads as a loaded model has them."""
    return ClassHeads(heads["templates"], heads["descriptions"], heads["descriptions"])
