"""From what the user gave to every option of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from finelens.backbones.registry import absolute_spec, is_encoder_spec
from finelens.core.options import from_mapping
from finelens.engine.device import choose_device, choose_precision
from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.methods.auto import AUTO
from finelens.methods.registry import METHODS, find_method
from finelens.runs.config import RunConfig, TextConfig
from finelens.runs.early import Assignments, refuse_idle, stage_of
from finelens.training.config import TrainingConfig


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
