"""What the run cost, its configuration, and how to repeat it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from finelens.core.console import duration
from finelens.core.options import from_mapping, to_plain
from finelens.images.view_config import ViewConfig
from finelens.reporting import figures
from finelens.reporting.record import RunRecord
from finelens.runs.config import RunConfig, TextConfig, in_options
from finelens.training.config import TrainingConfig


def build(record: RunRecord) -> dict[str, Any]:
    """The part on cost and configuration."""
    end, start = record.event("end"), record.event("start")
    seconds = {str(name): float(value) for name, value in end.get("seconds", {}).items()}
    total = sum(seconds.values())
    stages = sorted(seconds.items(), key=lambda item: -item[1])
    return {
        "forwards": end.get("no_grad_forwards"),
        "grad_forwards": end.get("grad_forwards"),
        "spared_prefixes": end.get("spared_prefixes"),
        "seconds": duration(total),
        "stages": [(name, duration(value), figures.share_bar(value / total if total else 0.0)) for name, value in stages],
        "versions": versions(record),
        "options": [(name, json.dumps(value, ensure_ascii=False), changed) for name, value, changed in options(record.config)],
        "choice": record.event("choice").get("reason"),
        "decision": record.event("decision").get("message"),
        "command": command(record.config, record.path),
        "digests": {
            "images": record.event("images").get("digest"),
            "classes": record.event("classes").get("digest"),
            "backbone": start.get("digest"),
        },
    }


def versions(record: RunRecord) -> dict[str, str]:
    """Versions of finelens and of what it rests on, when the run was started."""
    start = record.event("start")
    return {"finelens": str(start.get("config", {}).get("finelens_version", "unknown")), **start.get("versions", {})}


def options(config: RunConfig) -> list[tuple[str, Any, bool]]:
    """Every option by the name that ``--set`` knows it by, its value, and whether that is not the method's default."""
    method = config.entry
    training = from_mapping(TrainingConfig, method.training_with(config.method_options), "training")
    defaults = {"training": training, "views": ViewConfig(), "text": TextConfig()}
    found: list[tuple[str, Any, bool]] = [(name, getattr(config, name), False) for name in ("backbone", "method", "seed", "device")]
    for section, default in defaults.items():
        values, usual = to_plain(getattr(config, section)), to_plain(default)
        found += [(f"{section}.{key}", value, value != usual[key]) for key, value in values.items()]
    own, usual = to_plain(config.method_options), to_plain(method.config_class())
    given = {key: value for key, value in own.items() if value != usual.get(key)}
    # One option may decide what another is by default.
    usual = to_plain(from_mapping(method.config_class, given, "method"))
    return found + [(f"method.{key}", value, key in given or value != usual.get(key)) for key, value in own.items()]


def command(config: RunConfig, out: Path) -> str:
    """The command line that gives this run again."""
    listed = [] if config.classes_file in (None, config.in_file) else ["--classes", str(config.classes_file)]
    parts = ["finelens", config.verb, config.photos, *listed, *in_options(config), "--out", str(out), "--method", config.method]
    if config.descriptions_file is not None:
        parts += ["--descriptions", config.descriptions_file]
    for name, usual in (("backbone", "embedded"), ("seed", 0), ("device", "cpu")):
        if (value := getattr(config, name)) != usual:
            parts += [f"--{name}", str(value)]
    told = None if config.hints_file == config.in_file else config.hints_file
    inputs = {"hints": told, "prototypes": config.prototypes_file, "row-names": config.row_names_file, "logit-scale": config.logit_scale}
    for name, value in inputs.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    if config.csv_bom:
        parts.append("--csv-bom")
    if config.strict:
        parts.append("--strict")
    if not config.calibration:
        parts.append("--no-calibration")
    for name, value, changed in options(config):
        trained = name == "training.precision" or not name.startswith("training.") or config.entry.trains
        if changed and trained:
            parts += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(parts)
