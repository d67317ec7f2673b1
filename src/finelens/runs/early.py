"""What can be said of a command before a tensor library is imported, which takes seconds: paths, class files, names and values of options.

Everything here is checked again where it is read; this only says it sooner. What it cannot know without the library, such as whether a device is
there or a value lies in a method's range, is said later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finelens.backbones.registry import check_encoder_spec, check_spec, several
from finelens.classes.captions import read_captions
from finelens.classes.descriptions import load_descriptions
from finelens.classes.taxonomy import read_class_list
from finelens.core.device_names import check_device_name
from finelens.core.launch import launched
from finelens.core.options import check_types, from_mapping
from finelens.core.schemas import (
    CONFIG_FILE,
    FIRST_PREDICTION_COLUMNS,
    GROUP_COLUMNS,
    MODEL_CONFIG_FILE,
    MODEL_DIR,
    SET_COLUMNS,
    TAXONOMY_FILE,
    TILE_COLUMNS,
)
from finelens.errors import UserError
from finelens.feature_store.paths import is_feature_path
from finelens.images.discover import STANDARD_INPUT, check_folder, shards_at
from finelens.images.indices import check_part, is_index
from finelens.images.signatures import archive_kind
from finelens.images.tiles import Grid
from finelens.images.view_config import ViewConfig
from finelens.methods.auto import AUTO, starting_method
from finelens.methods.option_types import option_types
from finelens.methods.registry import Method, check_hints, find_method
from finelens.runs.any_read import nothing_read
from finelens.runs.arguments import Assignments, PredictArguments, RunArguments
from finelens.runs.config import TextConfig, is_run_document
from finelens.runs.folder import RunFolder
from finelens.runs.group_by import TIME, GroupBy
from finelens.runs.place import refuse_among, refuse_own_answers
from finelens.runs.shard import PARTS, groups_path, ranks_path, sets_path, tiles_path
from finelens.storage.files import check_target, read_json
from finelens.storage.growing import PART
from finelens.training.config import TrainingConfig
from finelens.training.stage_config import StageConfig


def check_predict(question: PredictArguments) -> None:
    """Refuse what ``predict`` would refuse.

    Raises:
        UserError: Input that cannot be used.
    """
    check_device_name(question.device)
    if question.csv_bom and question.shard is not None:
        raise UserError("--csv-bom would stand in every part of --shard; leave it out, and import the joined file as UTF-8")
    refuse_own_answers(question.target)
    _check_answers(question, question.target, ",".join(FIRST_PREDICTION_COLUMNS))
    if question.calibrate is not None:
        _check_answers(question, sets_path(question.target), ",".join(SET_COLUMNS))
    elif question.calibrate_photos is not None or question.coverage is not None:
        raise UserError("--coverage and --calibrate-photos have an effect with --calibrate only: give labelled photographs, or leave them out")
    if question.group_by is not None:
        check_groups(question.group_by, question.photos)
        if question.shard is not None:
            raise UserError(
                "--group-by needs all photographs of a group, and --shard or torchrun gives each process a part of them; leave one of them out"
            )
        _check_answers(question, groups_path(question.target), ",".join(GROUP_COLUMNS))
    check_tiles(question)
    if question.classes is not None:
        read_class_list(question.classes)
    elif question.descriptions is not None or question.prototypes is not None:
        raise UserError("--descriptions and --prototypes are about the names of --classes FILE: give it, or leave them out")
    if question.descriptions is not None:
        load_descriptions(question.descriptions)
    check_finished(question.run)
    for spec in question.extra_encoders:
        check_encoder_spec(spec)
    if question.classes is None and (question.run / TAXONOMY_FILE).is_file():
        _check_answers(question, ranks_path(question.target), "path,")
    check_source(question.photos, strict=question.strict, row_names=question.row_names, files=question.in_file is None)
    if question.in_file is None:
        refuse_among(question.target, question.photos)
    check_in(question.photos, question.in_file, question.box_confidence)
    check_readable((question.row_names, question.calibrate, question.prototypes))


def check_tiles(question: PredictArguments) -> None:
    """Refuse a grid of tiles that is none, and what tiles have no place for.

    Raises:
        UserError: One of these.
    """
    if question.tiles is None:
        if question.tile_floor is not None:
            raise UserError("--tile-floor is about the tiles of --tiles GRID; give a grid, or leave it out")
        return
    Grid.parse(question.tiles)
    if question.tile_floor is not None and not 0 <= question.tile_floor <= 1:
        raise UserError(f"--tile-floor is between 0 and 1, got {question.tile_floor:g}")
    if is_feature_path(question.photos) or (str(question.photos) != STANDARD_INPUT and shards_at(question.photos)):
        raise UserError(f"--tiles cuts photographs that are files, and {question.photos} holds none; give the folder of the photographs")
    others = {
        "--in": (question.in_file, "its rows say themselves what is cut out"),
        "--calibrate": (question.calibrate, "sets keep their promise for photographs like the labelled ones, and tiles are none"),
        "--group-by": (question.group_by, "the tiles of a photograph are a group already"),
        "--shard or torchrun": (question.shard, "the tiles of a photograph could lie in two parts"),
        "--extra": (question.extra or None, "its files hold no features of tiles"),
    }
    for option, (value, why) in others.items():
        if value is not None:
            raise UserError(f"--tiles and {option} do not go together ({why}); leave one of them out")
    _check_answers(question, tiles_path(question.target), ",".join(TILE_COLUMNS))


def _check_answers(question: PredictArguments, path: Path, start: str) -> None:
    """Refuse to replace a file of answers, unless the same command was stopped on the way to it, or could read nothing."""
    check_target(path, start)
    if not question.overwrite and path.is_file() and path.stat().st_size and not _stopped(question) and not _without_answers(question):
        raise UserError(f"{path} exists already; give another --csv, or --overwrite to replace it")


def _stopped(question: PredictArguments) -> bool:
    """Whether a command that was stopped has left a part of the answers; of several processes some may have finished theirs."""
    files = [question.csv] if question.shard is None else question.shard.all_of(question.csv)
    return any(file.with_name(file.name + end).exists() for file in files for end in (PART, PARTS))


def _without_answers(question: PredictArguments) -> bool:
    """Whether the answers that are there are of a command that ended because none of its files could be read: that one is given again."""
    # Processes that torchrun started end by what all of them could read.
    files = question.shard.all_of(question.csv) if question.shard is not None and launched()[1] > 1 else [question.target]
    try:
        return nothing_read([file for file in files if file.is_file()]) > 0
    except UserError:
        # Damaged, or of another finelens: it may hold answers.
        return False


def check_groups(group_by: str, photos: Path) -> None:
    """Refuse a rule of groups that is none, a file of groups that is not there, and times of what has none: of features, and of what lies in shards.

    Raises:
        UserError: One of these.
    """
    check_readable([GroupBy.parse(group_by).file])
    if not group_by.startswith(TIME):
        return
    what = "features" if is_feature_path(photos) else "shards" if shards_at(photos) or is_index(photos) else None
    if what is not None:
        raise UserError(f"--group-by {group_by} looks at the times of photographs that are files, and {photos} holds {what}; group by column:FILE")


def check_run(asked: RunArguments, out: Path, *, overwrite: bool = False) -> None:
    """Refuse what ``adapt`` and ``zero-shot`` would refuse.

    Args:
        asked: What the run is to be.
        out: The run folder.
        overwrite: Whether an earlier run in it is replaced.

    Raises:
        UserError: Input that cannot be used.
    """
    check_source(asked.photos, strict=asked.strict, row_names=asked.row_names, logit_scale=asked.logit_scale)
    check_in(asked.photos, asked.in_file, asked.box_confidence)
    if asked.group_by is not None:
        check_groups(asked.group_by, asked.photos)
    options = with_stage(asked.options or {}, asked.stage, asked.captions)
    found = find_method(starting_method(asked.method, options, asked.minutes))
    check_options(found, options)
    check_staged(stage_of(options), asked.photos, asked.prototypes)
    check_device_name(asked.device)
    # The last is what a run on features and prototypes is called; whether it fits is seen with them.
    if asked.backbone not in (None, "features"):
        assert asked.backbone is not None
        for spec in several(asked.backbone):
            check_spec(spec)
    for spec in asked.extra_encoders:
        check_encoder_spec(spec)
    RunFolder.check_place(out, asked.photos, overwrite=overwrite)
    if asked.method != AUTO and asked.in_file is None:
        check_hints(found, given=asked.hints is not None)
    # Whether a file of another tool has names and answers is seen when it is read.
    if asked.in_file is None:
        check_listed(asked.classes, asked.hints)
    if asked.classes is not None:
        read_class_list(asked.classes)
    if asked.descriptions is not None:
        load_descriptions(asked.descriptions)
    check_readable((asked.hints, asked.prototypes, asked.row_names))


def check_listed(classes: Path | None, hints: Path | None) -> None:
    """Refuse a run without a class list.

    Raises:
        UserError: Neither a list nor hints are given.
    """
    if classes is None and hints is None:
        raise UserError("there is no class list: give --classes FILE, or --hints FILE whose names are the list")


def check_features(photos: Path, *, backbone: str, device: str, classes: Path | None, descriptions: Path | None) -> None:
    """Refuse what ``features`` would refuse of its inputs.

    Raises:
        UserError: Input that cannot be used.
    """
    check_source(photos, files=True)
    check_device_name(device)
    check_spec(backbone)
    if descriptions is not None and classes is None:
        raise UserError("--descriptions is about classes: give --classes FILE as well")
    if classes is not None:
        read_class_list(classes)
    if descriptions is not None:
        load_descriptions(descriptions)


def check_finished(run: Path) -> None:
    """Refuse what is not the folder of a finished run.

    Raises:
        UserError: It is none.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{run} is not the folder of a finelens run (no {CONFIG_FILE}); give the --out of an earlier run")
    if not is_run_document(read_json(path)):
        raise UserError(f"{path}: not the configuration of a finelens run; choose a folder that finelens wrote")
    model = run / MODEL_DIR / MODEL_CONFIG_FILE
    if not model.is_file():
        raise UserError(f"{model} does not exist: the run is not finished (finelens resume) or {run / MODEL_DIR} is not the model of a run")


def check_source(photos: Path, *, strict: bool = False, row_names: Path | None = None, logit_scale: float | None = None, files: bool = False) -> None:
    """Refuse what holds neither photographs nor features; nothing is listed.

    Args:
        photos: What the user gave.
        strict: Whether photographs that decode with complaints get a note.
        row_names: Text file of row names.
        logit_scale: What the user says of the features' model.
        files: Whether one photograph, a list of them or ``-`` will do.

    Raises:
        UserError: It is missing, of another kind, or an option has no effect on it.
    """
    if is_feature_path(photos):
        if strict:
            raise UserError(f"--strict looks into photographs, and {photos} holds features; leave it out")
        return
    for name, value in (("--row-names", row_names), ("--logit-scale", logit_scale)):
        if value is not None:
            raise UserError(f"{name} has an effect on feature files only, and {photos} is none; leave it out")
    if files and (str(photos) == STANDARD_INPUT or (photos.is_file() and archive_kind(photos) is None)):
        return
    if not shards_at(photos) and not is_index(photos):
        check_folder(photos)
        check_part(photos)
    elif strict:
        raise UserError(f"--strict looks into files of photographs, and {photos} holds shards; leave it out")


def check_in(photos: Path, in_file: Path | None, box_confidence: float | None) -> None:
    """Refuse a file of another tool where there is nothing that it could be about.

    Raises:
        UserError: It is not there, or PHOTOS is no folder of photographs.
    """
    if in_file is None:
        if box_confidence is not None:
            raise UserError("--box-confidence is about the boxes of --in FILE; give that file, or leave it out")
        return
    if not in_file.is_dir():
        check_readable([in_file])
    if is_feature_path(photos) or shards_at(photos) or is_index(photos):
        raise UserError(f"--in says which photographs of a folder are meant, and {photos} is none; give the folder of the photographs")


def check_options(method: Method, options: Assignments) -> None:
    """Refuse names and types of options that a method does not have.

    Raises:
        UserError: One of them; the message names the nearest.
    """
    training = options.get("training", {})
    refuse_idle(method, training)
    from_mapping(ViewConfig, options.get("views", {}), "views")
    text = from_mapping(TextConfig, options.get("text", {}), "text")
    if text.templates is not None:
        check_readable([Path(text.templates)])
    # A method of another package says for itself what its options are.
    if method.name in option_types():
        check_types(option_types()[method.name], options.get("method", {}), "method")
    from_mapping(TrainingConfig, training, "training")
    stage_of(options)


def check_staged(stage: StageConfig, photos: Path, prototypes: Path | None) -> None:
    """Refuse a stage where there is nothing that it could train, and a captions file that cannot be used.

    Raises:
        UserError: The towers or the texts are not there, or the file is at fault.
    """
    if stage.name == "none":
        return
    if is_feature_path(photos):
        raise UserError(f"--stage {stage.name} trains the towers, and {photos} holds features; give photographs, or leave it out")
    if prototypes is not None:
        raise UserError(f"--stage {stage.name} encodes the texts again, and --prototypes stand in their place; leave one of the two out")
    if stage.captions is not None:
        read_captions(Path(stage.captions), photos)


def with_stage(options: Assignments, stage: str | None, captions: str | Path | None) -> Assignments:
    """The options with ``--stage`` and ``--captions`` among them.

    Raises:
        UserError: The options say it already.
    """
    said = {key: str(value) for key, value in (("name", stage), ("captions", captions)) if value is not None}
    twice = sorted(said.keys() & options.get("stage", {}).keys())
    if twice:
        raise UserError(f"--set stage.{twice[0]} says again what an option of the command says; give one of them")
    return {**options, "stage": {**options.get("stage", {}), **said}} if said else options


def stage_of(options: Assignments, verb: str = "adapt") -> StageConfig:
    """What comes before the method.

    Raises:
        UserError: An option of it is unknown or ill-typed, or has no effect.
    """
    values = options.get("stage", {})
    stage = from_mapping(StageConfig, values, "stage")
    if stage.name == "none" and values.keys() - {"name"}:
        raise UserError(f"stage.{min(values.keys() - {'name'})} has no effect without --stage clip-refine; name the stage, or leave it out")
    if stage.name != "none" and verb == "zero-shot":
        raise UserError(f"--stage {stage.name} trains: use finelens adapt --method zero-shot --stage {stage.name}")
    return stage


def refuse_idle(method: Method, training: Mapping[str, Any]) -> None:
    """Refuse options of a training that a method does not have.

    Raises:
        UserError: One of them.
    """
    idle = sorted(set(training) - {"precision"})
    if idle and not method.trains:
        raise UserError(f"training.{idle[0]} has no effect: method {method.name} does not train; choose another --method or leave it out")


def check_readable(paths: Iterable[Path | None]) -> None:
    """Refuse files that are not there or cannot be opened; None is no file.

    Raises:
        UserError: One of them.
    """
    for path in paths:
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
