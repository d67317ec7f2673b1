"""What the run cost, its configuration, and how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelens.core.console import duration
from finelens.engine.device import choose_device, choose_precision
from finelens.errors import UserError
from finelens.methods.registry import DEFAULT_METHOD
from finelens.reporting import figures
from finelens.reporting.record import RunRecord
from finelens.runs.config import RunConfig, in_options
from finelens.runs.repeat import PRECISION, changed_options, options
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
        "stage": stage_line(record),
        "choice": record.event("choice").get("reason"),
        "backbones": record.event("backbones").get("reason"),
        "decisions": [event["message"] for event in record.events if event["event"] == "decision"],
        "command": command(record.config, record.path),
        "digests": {
            "images": record.event("images").get("digest"),
            "classes": record.event("classes").get("digest"),
            "backbone": start.get("digest"),
        },
    }


def stage_line(record: RunRecord) -> str | None:
    """What the stage before the method did; None in a run without."""
    found = record.event("stage")
    if not found:
        return None
    before, after = found["before"], found["after"]
    towers = "both towers" if found["text_trained"] else "the image tower; the text tower stayed as it was"
    return (
        f"{found['name']} trained {towers}, on {found['pairs']} pairs of an image and a text in {found['steps']} steps. Modality gap (distance of "
        f"the means) {before['gap']:.4f} before, {after['gap']:.4f} after; mean distance within a pair {before['pair_distance']:.4f} before, "
        f"{after['pair_distance']:.4f} after. What this report calls unadapted is the model after it"
    )


def versions(record: RunRecord) -> dict[str, str]:
    """Versions of finelens and of what it rests on, when the run was started."""
    start = record.event("start")
    return {"finelens": str(start.get("config", {}).get("finelens_version", "unknown")), **start.get("versions", {})}


def command(config: RunConfig, out: Path) -> str:
    """The command line that gives this run again."""
    told = None if config.hints_file == config.in_file else config.hints_file
    return _adapted(config, config.verb, ["--method", config.method], told, out, changed_options(config))


def next_command(config: RunConfig, method: str, hints: str, out: Path) -> str:
    """The command line that adapts to the same photographs with other hints; another method takes options of its own.

    What nobody has to say is left out: the default method, and the precision that this machine takes anyhow.
    """
    changed = changed_options(config)
    if changed.get(PRECISION) == _usual_precision(config.device):
        del changed[PRECISION]
    if method != config.method:
        changed = {name: value for name, value in changed.items() if name == PRECISION or not name.startswith(("method.", "training."))}
    return _adapted(config, "adapt", [] if method == DEFAULT_METHOD else ["--method", method], hints, out, changed)


def _usual_precision(device: str) -> str | None:
    """What a run takes here where nobody says; None where there is no such device."""
    try:
        return choose_precision(TrainingConfig().precision, choose_device(device)).name
    except UserError:
        return None


def _adapted(config: RunConfig, verb: str, method: Sequence[str], hints: str | None, out: Path, changed: Mapping[str, Any]) -> str:
    listed = [] if config.classes_file in (None, config.in_file) else ["--classes", str(config.classes_file)]
    parts = ["finelens", verb, config.photos, *listed, *in_options(config), "--out", str(out), *method]
    if config.descriptions_file is not None:
        parts += ["--descriptions", config.descriptions_file]
    for name, usual in (("backbone", "embedded"), ("seed", 0), ("device", "cpu")):
        if (value := getattr(config, name)) != usual:
            parts += [f"--{name}", str(value)]
    inputs = {"hints": hints, "prototypes": config.prototypes_file, "row-names": config.row_names_file, "logit-scale": config.logit_scale}
    for name, value in inputs.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    if config.group_by is not None:
        parts += ["--group-by", config.group_by]
    if config.rank_floor != RunConfig.rank_floor:
        parts += ["--rank-floor", str(config.rank_floor)]
    if config.csv_bom:
        parts.append("--csv-bom")
    if config.strict:
        parts.append("--strict")
    if not config.calibration:
        parts.append("--no-calibration")
    for name, value in changed.items():
        parts += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(parts)
