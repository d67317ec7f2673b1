"""What a run is: frozen dataclasses, ``--set`` assignments, and the round trip through ``config.json``.

This module imports no tensor library, so that the command line can answer ``--help`` at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from finelens.core.options import from_mapping, nearest, require, to_plain
from finelens.core.schemas import CONFIG_SECTIONS, SCHEMA_VERSION, VERSION
from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.methods.registry import DEFAULT_METHOD, Method, find_method
from finelens.training.config import TrainingConfig
from finelens.training.stage_config import StageConfig

FORMAT = "finelens-run"

Verb = Literal["zero-shot", "adapt", "predict"]


@dataclass(frozen=True)
class TextConfig:
    """Where prompts come from.

    Attributes:
        templates: Path of a file with one prompt template a line; None for the built-in ones.
        synonyms: Whether further names of a class in a table fill the templates too.
    """

    templates: str | None = None
    synonyms: bool = True

    def __post_init__(self) -> None:
        require(self.templates is None or bool(self.templates.strip()), "text.templates", "the path of a file, or null", self.templates)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run. Two equal configurations over the same files give the same bits.

    Attributes:
        verb: What was asked.
        photos: Folder of unlabelled photographs, or a feature file.
        classes_file: List of class names; None where the verb takes them from elsewhere.
        descriptions_file: Sentences about the classes, or None.
        hints_file: Classes that a person gave for a few photographs, or None.
        in_file: File of another tool that says which photographs, or boxes in them, are the rows; None for all files of the folder. Where it is the
            classes or hints file too, these come from it.
        box_confidence: Boxes of a detector in it that are less sure are left out; None for the default.
        strict: Whether files that decode with warnings get a note.
        csv_bom: Whether ``predictions.csv`` begins with a byte-order mark.
        rank_floor: Probability that the narrowest rank in ``predictions_ranks.csv`` has at least.
        group_by: Which photographs belong together: ``folder``, ``time:SECONDS`` or ``column:FILE``; None for none.
        calibration: Whether the probabilities are calibrated without labels.
        prototypes_file: Prototypes in the place of texts, or None.
        row_names_file: Names of the rows of a feature file of another origin, or None.
        logit_scale: Multiplier of cosines where only features are known; None takes what a file says.
        backbone: Specification of the dual encoder; ``features`` where only features are known.
        method: Name of the adaptation method.
        seed: Seed of all randomness.
        device: Where tensors live.
        training: The optimisation.
        views: The image views (``finelens.images.view_config.ViewConfig``).
        text: The prompts.
        stage: What comes before the method.
        method_options: The method's own dataclass of options; None takes its defaults.
    """

    verb: Verb
    photos: str
    classes_file: str | None = None
    descriptions_file: str | None = None
    hints_file: str | None = None
    in_file: str | None = None
    box_confidence: float | None = None
    strict: bool = False
    csv_bom: bool = False
    rank_floor: float = 0.8
    group_by: str | None = None
    calibration: bool = True
    prototypes_file: str | None = None
    row_names_file: str | None = None
    logit_scale: float | None = None
    backbone: str = "embedded"
    method: str = DEFAULT_METHOD
    seed: int = 0
    device: str = "cpu"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    text: TextConfig = field(default_factory=TextConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    method_options: Any = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1", self.seed)
        require(0.5 < self.rank_floor <= 1, "rank_floor", "above 0.5 and at most 1", self.rank_floor)
        for name in ("photos", "backbone", "method", "device"):
            require(bool(getattr(self, name)), name, "given", getattr(self, name))
        if self.method_options is None:
            object.__setattr__(self, "method_options", self.entry.config_class())

    @property
    def entry(self) -> Method:
        """The method as the registry knows it: what it needs and can.

        Raises:
            UserError: There is no method of that name.
        """
        return find_method(self.method)


def in_options(config: RunConfig) -> list[str]:
    """The options of a command that give a run the rows of its file of another tool; none without one."""
    given = (("--in", config.in_file), ("--box-confidence", config.box_confidence))
    return [text for flag, value in given if value is not None for text in (flag, str(value))]


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read the arguments of ``--set``.

    Args:
        assignments: Texts ``section.key=value``. The value is read as JSON, else taken as it stands; a later assignment of a key wins.

    Returns:
        Values by section and key. Only sections that occur are present.

    Raises:
        UserError: No ``=``, no section, or an unknown section.
    """
    result: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise UserError(f"--set {assignment}: expected section.key=value, for example training.epochs=3")
        if section not in CONFIG_SECTIONS:
            near = nearest(section, CONFIG_SECTIONS)
            remedy = f"did you mean {near}.{key}?" if near else f"sections are: {', '.join(CONFIG_SECTIONS)}"
            raise UserError(f"--set {assignment}: unknown section {section!r}; {remedy}")
        result.setdefault(section, {})[key] = _parse_value(text.strip())
    return result


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def to_json(config: RunConfig) -> dict[str, Any]:
    """The content of ``config.json``: the configuration with the format's name and version and the version of finelens."""
    head = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "finelens_version": VERSION}
    return {**head, **to_plain(config)}


def is_run_document(document: Any) -> bool:
    """Whether parsed JSON is the ``config.json`` of a finelens run, of whatever version."""
    return isinstance(document, Mapping) and document.get("format") == FORMAT


def from_json(document: Any, where: str) -> RunConfig:
    """Read what :func:`to_json` wrote.

    Args:
        document: Parsed JSON.
        where: Name of the file, for messages.

    Raises:
        UserError: Not the configuration of a run, written by a newer finelens, or with unknown or ill-typed options.
    """
    if not is_run_document(document):
        raise UserError(f"{where}: not the configuration of a finelens run; choose a folder that finelens wrote")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{where}: schema_version {version!r} is not a version; the file was edited or damaged, start a new run")
    if version > SCHEMA_VERSION:
        writer = document.get("finelens_version", "unknown")
        raise UserError(
            f"{where}: written by a newer finelens ({writer}, format {version}); this is {VERSION}, which reads formats up to {SCHEMA_VERSION}: "
            "upgrade finelens, or start a new run in another folder"
        )
    values = {k: v for k, v in document.items() if k not in ("format", "schema_version", "finelens_version")}
    try:
        return _run_from_values(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _run_from_values(values: dict[str, Any]) -> RunConfig:
    options = values.pop("method_options", {})
    config = from_mapping(RunConfig, values, "")
    return replace(config, method_options=config.entry.options_of_file(options))


def diff(a: RunConfig, b: RunConfig) -> list[str]:
    """What changed from one configuration to another, one line an option, e.g. ``training.epochs: 15 -> 3``; empty when equal."""
    left, right = _flat(a), _flat(b)
    keys = list(left) + [key for key in right if key not in left]
    return [f"{k}: {_show(left, k)} -> {_show(right, k)}" for k in keys if _show(left, k) != _show(right, k)]


def _flat(config: RunConfig) -> dict[str, Any]:
    """Options by the names that ``--set`` knows them by."""
    flat: dict[str, Any] = {}
    for f in fields(config):
        value = to_plain(getattr(config, f.name))
        if isinstance(value, dict):
            section = "method" if f.name == "method_options" else f.name
            flat.update({f"{section}.{key}": item for key, item in value.items()})
        else:
            flat[f.name] = value
    return flat


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"
