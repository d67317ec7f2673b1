"""``finelens features``: photographs encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finelens.commands.engine import check_engine, engine_options
from finelens.commands.options import BACKBONES, device_option
from finelens.commands.stops import encoded_any, leave_stopped
from finelens.core.given import PATH
from finelens.core.voice import voice
from finelens.errors import UserError
from finelens.feature_store.paths import PART


@click.command()
@voice
@click.argument("photos", type=PATH)
@click.option("--out", required=True, type=PATH, help="File to write, .safetensors; or a folder of shards, .features.")
@click.option("--backbone", default="embedded", show_default=True, help=BACKBONES)
@device_option
@click.option("--classes", type=PATH, help="File of class names, to store their prototypes as well.")
@click.option("--descriptions", type=PATH, help="JSON file {class: [sentence, ...]}.")
@click.option("--patches", is_flag=True, help="Store patch tokens as well (large).")
@click.option("--crops", default=0, show_default=True, type=click.IntRange(min=0), help="Random crops of each image to encode and store as well.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the crops.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier feature file.")
@engine_options
def features(photos: Path, engine: str, ray_address: str | None, **given: Any) -> None:
    """Encode PHOTOS once and write a feature file, which the other verbs take in the place of photographs."""
    check_engine(engine, ray_address)
    if engine == "ray" and (given["patches"] or given["crops"] or str(photos) == "-"):
        raise UserError("--engine ray writes a folder of shards: leave out --patches, --crops and -")
    from finelens.runs.early import check_features

    check_features(photos, **{name: given[name] for name in ("backbone", "device", "classes", "descriptions")})
    try:
        if engine == "ray":
            from finelens.runs.on_ray import FeatureArguments, features_on_ray

            own = {name: given[name] for name in ("out", "backbone", "device", "classes", "descriptions")}
            features_on_ray(FeatureArguments(photos, **own), given["console"], ray_address, overwrite=given["overwrite"])
        else:
            from finelens.runs.encode import features as write_features

            write_features(photos, **given)
        given["console"].answer("", out=str(given["out"]))
    except KeyboardInterrupt:
        again = "and the same command goes on from there"
        if (given["out"] / PART).is_file():
            leave_stopped(f"shards that are whole are in {given['out']}, {again}")
        leave_stopped(f"what was encoded is in the cache, {again}" if encoded_any() else "nothing new is kept yet: the same command begins again")
