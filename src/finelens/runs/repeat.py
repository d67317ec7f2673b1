"""The options of a run as a TOML file: written by ``finelens config RUN``, read by ``--config FILE``. Documentation: docs/command.md."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from finelens.core.options import from_mapping, nearest, to_plain
from finelens.core.schemas import CONFIG_SECTIONS
from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.runs.config import RunConfig, TextConfig, parse_assignments
from finelens.training.config import TrainingConfig
from finelens.training.stage_config import StageConfig

# Options of the command line by what they are called in a configuration.
_FILES = {
    "classes": "classes_file",
    "descriptions": "descriptions_file",
    "hints": "hints_file",
    "in": "in_file",
    "box-confidence": "box_confidence",
    "group-by": "group_by",
    "prototypes": "prototypes_file",
    "row-names": "row_names_file",
    "logit-scale": "logit_scale",
}
# Those of them that are no paths.
_VALUES = ("box-confidence", "group-by", "logit-scale")
_ALWAYS = ("backbone", "method", "seed", "device", "calibration", "strict", "csv-bom", "rank-floor")
VERB, SET = "verb", "set"
# The one option of training that a method without training has.
PRECISION = "training.precision"


def options(config: RunConfig) -> list[tuple[str, Any, bool]]:
    """Every option by the name that ``--set`` knows it by, its value, and whether that is not the method's default.

    The precision never counts as changed: a run writes down the one it took, and does not tell whether anybody asked for it.
    """
    method = config.entry
    training = from_mapping(TrainingConfig, method.training_with(config.method_options), "training")
    defaults = {"training": training, "views": ViewConfig(), "text": TextConfig(), "stage": StageConfig()}
    found: list[tuple[str, Any, bool]] = [(name, getattr(config, name), False) for name in ("backbone", "method", "seed", "device")]
    for section, default in defaults.items():
        values, usual = to_plain(getattr(config, section)), to_plain(default)
        names = {f"{section}.{key}": key for key in values}
        found += [(name, values[key], values[key] != usual[key] and name != PRECISION) for name, key in names.items()]
    own, usual = to_plain(config.method_options), to_plain(method.config_class())
    given = {key: value for key, value in own.items() if value != usual.get(key)}
    # One option may decide what another is by default.
    usual = to_plain(from_mapping(method.config_class, given, "method"))
    return found + [(f"method.{key}", value, key in given or value != usual.get(key)) for key, value in own.items()]


def changed_options(config: RunConfig) -> dict[str, Any]:
    """Those that are not the default and have an effect, by the name that ``--set`` knows them by, and the precision, which gives a run again."""
    takes, usual = config.entry.trains, TrainingConfig().precision
    told = {name: value for name, value, changed in options(config) if changed and (takes or not name.startswith("training."))}
    return told if config.training.precision == usual else {PRECISION: config.training.precision, **told}


def to_toml(config: RunConfig) -> str:
    """The options that give a run again, but for its folder: what ``--config`` reads.

    Raises:
        UserError: A path that is not valid text, which TOML cannot hold.
    """
    lines = [f"# finelens {config.verb} --config THIS_FILE --out RUN", f"{VERB} = {_toml(config.verb)}", f"photos = {_toml(config.photos)}"]
    # What a file of another tool gives is found in it again.
    told = {name: getattr(config, field) for name, field in _FILES.items()}
    told |= {name: None for name in ("classes", "hints") if told[name] == told["in"]}
    lines += [f"{name} = {_toml(value)}" for name, value in told.items() if value is not None]
    lines += [f"{name} = {_toml(getattr(config, name.replace('-', '_')))}" for name in _ALWAYS]
    changed = changed_options(config)
    if not all(_fits(value) for value in changed.values()):
        # TOML has no null: these stand as --set has them.
        texts = [f"{name}={json.dumps(value)}" for name, value in changed.items()]
        return "\n".join([*lines, f"{SET} = {_toml(texts)}", ""])
    for section in CONFIG_SECTIONS:
        own = [f"{key} = {_toml(value)}" for name, value in changed.items() for head, _, key in [name.partition(".")] if head == section]
        lines += ["", f"[{SET}.{section}]", *own] if own else []
    return "\n".join([*lines, ""])


def moved(config: RunConfig) -> list[tuple[str, str]]:
    """What the command line has in the place of a path of the run that leads nowhere now, and that path."""
    files = {f"--{name}": getattr(config, field) for name, field in _FILES.items() if name not in _VALUES}
    return [(option, path) for option, path in {"PHOTOS": config.photos, **files}.items() if path is not None and not Path(path).exists()]


def _fits(value: Any) -> bool:
    return all(map(_fits, value)) if isinstance(value, list) else isinstance(value, bool | int | float | str)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if not isinstance(value, str):
        return repr(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{value!r} is not valid text, which a TOML file cannot hold; give it on the command line") from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_options(path: Path, verb: str, known: Collection[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read a file of options.

    Args:
        path: The file: keys are the long options of the command line without dashes in front, and ``set`` a table of sections, or a list of texts as
            ``--set`` takes them.
        verb: The verb that is asked for.
        known: Keys that it has.

    Returns:
        Values by key, and values by section and key of ``set``.

    Raises:
        UserError: It cannot be read, is no TOML, is about another verb, or has a key or section that there is not.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML ({error}); finelens config RUN writes such a file") from error
    meant, assigned = document.pop(VERB, verb), document.pop(SET, {})
    if meant != verb:
        raise UserError(f"{path} is about finelens {meant}; give it to that verb, or leave its line {VERB} out")
    for key, value in document.items():
        if key not in known:
            near = nearest(key, known)
            raise UserError(f"{path}: unknown option {key!r}; " + (f"did you mean {near}?" if near else f"options are: {', '.join(sorted(known))}"))
        if isinstance(value, Mapping):
            raise UserError(f"{path}: {key} is a table; options by section stand in [{SET}.SECTION]")
    return document, _sections(path, assigned)


def _sections(path: Path, assigned: Any) -> dict[str, dict[str, Any]]:
    if isinstance(assigned, list) and all(isinstance(text, str) for text in assigned):
        return parse_assignments(assigned)
    if not isinstance(assigned, Mapping) or not all(isinstance(values, Mapping) for values in assigned.values()):
        raise UserError(f"{path}: {SET} must be tables [{SET}.SECTION] of options, or a list of texts section.key=value")
    for section in assigned:
        if section not in CONFIG_SECTIONS:
            raise UserError(f"{path}: unknown section {SET}.{section}; sections are: {', '.join(CONFIG_SECTIONS)}")
    return {section: dict(values) for section, values in assigned.items()}
