"""``finelens predict`` and ``join``: a finished run asked about other photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finelens.commands.engine import check_engine, engine_options
from finelens.commands.options import (
    box_confidence_option,
    csv_bom_option,
    device_option,
    extra_names_option,
    extra_option,
    group_by_option,
    in_option,
    moved_encoders_option,
    row_names_option,
    strict_option,
)
from finelens.commands.stops import leave_stopped
from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.launch import launched
from finelens.core.voice import voice
from finelens.errors import UserError

if TYPE_CHECKING:
    from finelens.runs.arguments import PredictArguments


@click.command()
@voice
@click.argument("run", type=PATH)
@click.argument("photos", type=PATH)
@click.option("--csv", "csv_file", required=True, type=PATH, help="File to write.")
@device_option
@strict_option
@click.option("--calibrate", type=PATH, help="CSV file path,label (paths from --calibrate-photos on): also writes OUT.sets.csv.")
@click.option("--calibrate-photos", type=PATH, help="Folder of the labelled photographs.  [default: PHOTOS]")
@click.option("--coverage", type=float, help="Share of the sets that should hold the true class.  [default: 0.9]")
@click.option("--zero-shot/--no-zero-shot", default=True, show_default=True, help="Fill the column zero_shot_class; without it: half the work.")
@click.option("--classes", type=PATH, help="Another list of class names than the run's (docs/new_classes.md).")
@click.option("--descriptions", type=PATH, help="JSON file {class: [sentence, ...]} for --classes.  [default: the run's]")
@click.option("--prototypes", type=PATH, help="Prototypes for --classes, where the run was made with prototypes.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier command; what a stopped one left is gone on with in any case.")
@click.option("--shard", metavar="I/K", help="Part I of K only, into OUT-0000I-of-0000K.csv; finelens join puts the parts together.")
@group_by_option
@click.option("--tiles", metavar="GRID", help="Also classify tiles of each photograph: 3, 3x2 or 3x2:0.5 (columns, rows, overlap).")
@click.option("--tile-floor", type=float, help="Least probability with which a tile names its class.  [default: 0.5]")
@engine_options
@row_names_option
@in_option
@box_confidence_option
@csv_bom_option
@extra_option
@extra_names_option
@moved_encoders_option
def predict(
    run: Path,
    photos: Path,
    csv_file: Path,
    engine: str,
    ray_address: str | None,
    shard: str | None,
    group_by: str | None,
    tiles: str | None,
    csv_bom: bool,
    extra: tuple[str, ...],
    console: Console,
    **given: Any,
) -> None:
    """Classify new PHOTOS with the finished run in RUN.

    PHOTOS is a folder, tar shards, Parquet files with image bytes, an index over zip archives, a feature file, one photograph, a list of paths in a
    .txt or .lst file, or - for such a list on standard input.

    Rows are written as they come. After an interruption the same command goes on where it was.
    """
    from finelens.runs.arguments import PredictArguments
    from finelens.runs.early import check_predict
    from finelens.runs.shard import Shard

    rank, processes = launched()
    if processes > 1 and shard is not None:
        raise UserError("torchrun shares the photographs among its processes, and --shard does so among machines; use one of them")
    alone = csv_bom or group_by is not None or tiles is not None
    if engine == "ray" and (processes > 1 or shard is not None or alone or str(photos) == "-"):
        raise UserError("--engine ray divides files among its workers itself: leave out torchrun, --shard, --csv-bom, --group-by, --tiles and -")
    check_engine(engine, ray_address)
    part = Shard.parse(shard) if shard is not None else Shard(rank + 1, processes) if processes > 1 else None
    files = tuple(map(Path, extra))
    question = PredictArguments(
        run=run, photos=photos, csv=csv_file, shard=part, extra=files, group_by=group_by, tiles=tiles, csv_bom=csv_bom, **given
    )
    check_predict(question)
    try:
        if engine == "ray":
            from finelens.runs.on_ray import predict_on_ray

            predict_on_ray(question, console, ray_address)
        else:
            from finelens.runs.to_file import predict_to_file

            predict_to_file(question, console)
    except KeyboardInterrupt:
        leave_stopped(_left(question))
    _tell(question, console)


def _left(question: PredictArguments) -> str:
    """What is there of an answer that was stopped, and how to go on."""
    from finelens.runs.shard import PARTS
    from finelens.storage.growing import JOURNAL

    again = "and the same command goes on from there"
    target, parts = question.target, question.csv.with_name(question.csv.name + PARTS)
    if parts.is_dir() and any(parts.iterdir()):
        return f"parts that are whole are in {parts}, {again}"
    if not target.with_name(target.name + JOURNAL).is_file():
        return "nothing is answered yet: the same command begins again"
    if question.group_by is not None:
        return "the same command begins anew, as groups need all answers"
    return f"what was answered is in {target}.part, {again}"


def _tell(question: PredictArguments, console: Console) -> None:
    """Say where the answers are; files of which not one could be read are a mistake."""
    from finelens.runs.any_read import check_any_part_read, check_any_read

    part = question.shard
    if part is not None and part.number == 1:
        console.say(f"when all {part.count} parts are there: finelens join {part.pattern(question.csv, part.count)} --csv {question.csv}")
    if launched()[1] > 1 and part is not None:
        check_any_part_read(part.all_of(question.csv))
    else:
        check_any_read(question.target, question.tiles)
    console.answer("", csv=str(question.target))


@click.command()
@voice
@click.argument("parts", nargs=-1, required=True, type=PATH)
@click.option("--csv", "csv_file", required=True, type=PATH, help="File to write.")
def join(parts: tuple[Path, ...], csv_file: Path, console: Console) -> None:
    """Put the PARTS that predict --shard wrote together: the bytes of a file that was written without parts."""
    from finelens.runs.any_read import check_any_read
    from finelens.runs.shard import join_parts

    join_parts(parts, csv_file, console)
    check_any_read(csv_file)
    console.answer("", csv=str(csv_file))
