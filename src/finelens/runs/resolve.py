"""From what the user gave to every option of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from finelens.backbones.registry import absolute_spec, check_encoder_spec, is_encoder_spec, several
from finelens.core.options import from_mapping
from finelens.engine.device import choose_device, choose_precision
from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.intake.recognise import CONFIDENCE
from finelens.intake.taken import Taken, take
from finelens.methods.auto import AUTO, starting_method
from finelens.methods.registry import METHODS, find_method
from finelens.runs.arguments import Assignments, RunArguments
from finelens.runs.config import RunConfig, TextConfig
from finelens.runs.early import check_groups, check_listed, refuse_idle, stage_of, with_stage
from finelens.runs.group_by import absolute_groups
from finelens.runs.sources import source_at
from finelens.training.config import TrainingConfig


def resolve(asked: RunArguments) -> tuple[RunConfig, Taken | None]:
    """The configuration of a run in a folder, and what it takes from a file of another tool.

    Args:
        asked: What the user gave; of several backbones, the first stands in the configuration until they are ranked.

    Raises:
        UserError: Input that cannot be used.
    """
    taken = taken_from(asked.in_file, asked.photos, asked.box_confidence)
    classes, hints = asked.classes, asked.hints
    if taken is not None:
        classes, hints = classes or (asked.in_file if taken.classes else None), hints or (asked.in_file if taken.hints else None)
    check_listed(classes, hints)
    if asked.group_by is not None:
        check_groups(asked.group_by, asked.photos)
    for spec in asked.extra_encoders:
        check_encoder_spec(spec)
    source = source_at(asked.photos, strict=asked.strict, row_names=asked.row_names, logit_scale=asked.logit_scale)
    first = None if asked.backbone is None else several(asked.backbone)[0]
    options = with_stage(asked.options or {}, asked.stage, asked.captions)
    options = with_extra(asked.method, options, (*asked.extra, *asked.extra_encoders), asked.extra_names)
    config = make_config(
        asked.verb,
        absolute(asked.photos),
        starting_method(asked.method, options, asked.minutes),
        options,
        classes_file=_absolute(classes),
        descriptions_file=_absolute(asked.descriptions),
        hints_file=_absolute(hints),
        in_file=_absolute(asked.in_file),
        box_confidence=asked.box_confidence,
        csv_bom=asked.csv_bom,
        rank_floor=asked.rank_floor,
        group_by=None if asked.group_by is None else absolute_groups(asked.group_by),
        strict=asked.strict,
        calibration=asked.calibration,
        prototypes_file=_absolute(asked.prototypes),
        row_names_file=_absolute(asked.row_names),
        logit_scale=asked.logit_scale,
        backbone=absolute_spec(source.backbone(first, asked.prototypes)),
        seed=asked.seed,
        device=asked.device,
    )
    return config, taken


def taken_from(in_file: str | Path | None, photos: str | Path, box_confidence: float | None) -> Taken | None:
    """What a file of another tool says about a folder; None without one.

    Raises:
        UserError: The file cannot be used, or there is none that ``box_confidence`` could be about.
    """
    if in_file is None:
        if box_confidence is not None:
            raise UserError("--box-confidence is about the boxes of --in FILE; give that file, or leave it out")
        return None
    return take(Path(in_file), Path(photos), CONFIDENCE if box_confidence is None else box_confidence)


def make_config(verb: str, photos: str, method: str, assignments: Assignments, **given: Any) -> RunConfig:
    """Resolve every option of a run.

    Args:
        verb: ``adapt`` or ``zero-shot``.
        photos: Folder of photographs, or what to call images that come from Python.
        method: Name of the method.
        assignments: Values by section and key, as ``--set`` gives them.
        given: Further fields of :class:`~finelens.runs.config.RunConfig`.

    Raises:
        UserError: An unknown or ill-typed option; the message names the nearest.
    """
    found = find_method(method)
    training = assignments.get("training", {})
    refuse_idle(found, training)
    if training.get("cached_prefix") and found.training_defaults.get("scope") == "none":
        raise UserError(f"training.cached_prefix has no effect: method {method} leaves the image tower as it is; leave it out")
    text = from_mapping(TextConfig, assignments.get("text", {}), "text")
    stage = stage_of(assignments, verb)
    options: Any = from_mapping(found.config_class, assignments.get("method", {}), "method")
    wanted = from_mapping(TrainingConfig, {**found.training_with(options), **training}, "training")
    if "support" in found.needs and options.support is not None:
        options = replace(options, support=absolute(options.support))
    if "extra" in found.needs:
        views = tuple(absolute(entry) if entry in options.files else absolute_spec(entry) for entry in options.extra)
        options = replace(options, extra=views, extra_names=tuple(map(absolute, options.extra_names)))
    precision = choose_precision(wanted.precision, choose_device(given.get("device", "cpu"))).name
    return RunConfig(
        verb=cast(Any, verb),
        photos=photos,
        method=method,
        training=replace(wanted, precision=cast(Any, precision)),
        views=from_mapping(ViewConfig, assignments.get("views", {}), "views"),
        text=text if text.templates is None else replace(text, templates=absolute(text.templates)),
        stage=stage if stage.captions is None else replace(stage, captions=absolute(stage.captions)),
        method_options=options,
        **given,
    )


def with_extra(method: str, options: Assignments, extra: Sequence[str | Path], names: Sequence[str | Path] = ()) -> Assignments:
    """The options with ``--extra`` and ``--extra-encoder`` among those of the method.

    Raises:
        UserError: The method takes none, or the options say it already.
    """
    if not extra and not names:
        return options
    said = "--extra-encoder" if extra and all(is_encoder_spec(str(entry)) for entry in extra) else "--extra"
    if method != AUTO and "extra" not in find_method(method).needs:
        able = " or ".join(entry.name for entry in METHODS if "extra" in entry.needs)
        raise UserError(f"{said} has an effect with --method {able} only, and the method is {method}; leave it out")
    if "extra" in options.get("method", {}):
        raise UserError(f"{said} and --set method.extra say the same thing; give one of them")
    if not extra:
        raise UserError("--extra-names is about the files of --extra; give them, or leave it out")
    return {**options, "method": {**options.get("method", {}), "extra": [str(path) for path in extra], "extra_names": [str(path) for path in names]}}


def absolute(path: str | Path) -> str:
    """A run can be resumed from any folder."""
    return str(Path(path).absolute())


def _absolute(path: Path | None) -> str | None:
    return None if path is None else absolute(path)
