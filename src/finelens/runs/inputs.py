"""Everything that a run reads, loaded, checked and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finelens.classes.descriptions import load_descriptions
from finelens.classes.hint_doubts import doubts_of
from finelens.classes.hints import describe_hints, hints_by_name, hints_digest, names_of_run, read_hint_labels, read_hints
from finelens.classes.labels import Told
from finelens.classes.taxonomy import Taxonomy, read_class_list
from finelens.classes.text_files import counted, listing, quote
from finelens.core.console import Console
from finelens.core.options import to_plain
from finelens.engine.distributed import ALONE, Processes
from finelens.errors import UserError
from finelens.feature_store.extra import ExtraFiles, read_extra
from finelens.feature_store.extra_towers import Beside
from finelens.feature_store.files import FeatureFile
from finelens.images.load import status_counts
from finelens.intake.taken import Taken
from finelens.methods.registry import check_hints
from finelens.protocol import ClassSet, Hints, Loaded
from finelens.runs.answered import Copies, copies_of_answered
from finelens.runs.config import RunConfig, to_json
from finelens.runs.feature_source import FolderSource
from finelens.runs.prepare import Prepared, prepare, with_support
from finelens.runs.source import Source
from finelens.runs.sources import source_of_run
from finelens.runs.stage import before_stage, check_stage, run_stage
from finelens.storage.cache import state_digest

# What a process has read, by the event that logs its hash.
_READ = {
    "start": "weights",
    "images": "photographs",
    "classes": "class texts",
    "hints": "hints",
    "support": "support images",
    "extra": "extra features",
}


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads, loaded and checked.

    Attributes:
        prepared: Backbone, texts and task.
        loaded: Images and one record per file.
        hints: Classes that the user gave for a few of them; None without.
        digests: Hashes of the unadapted image tower, the images and the classes, by the event that logs them; whatever the files are called.
        choice: Why ``--method auto`` chose the run's method; None where the user named it.
        taken: The file of another tool that gave the rows; None in a run without.
        taxonomy: What a table of classes says beside their names; None for a plain list.
    """

    prepared: Prepared
    loaded: Loaded
    hints: Hints | None
    digests: dict[str, str]
    choice: str | None = None
    backbones: Mapping[str, Any] | None = None
    taken: Taken | None = None
    taxonomy: Taxonomy | None = None

    @cached_property
    def told(self) -> dict[str, str]:
        """Class names by name of the image as a person gave them, the empty name for "none of these"; empty without hints."""
        return {} if self.hints is None else hints_by_name(self.hints, self.loaded.records, self.prepared.classes.names)

    @cached_property
    def copies(self) -> Copies:
        """What that says of exact copies."""
        return copies_of_answered(self.told, self.loaded.records, self.loaded.store.ids)


def is_part(loaded: Loaded) -> bool:
    """Whether what is loaded is a part of photographs too many to hold."""
    return isinstance(loaded, FeatureFile) and loaded.counts is not None


def counts_of(loaded: Loaded) -> dict[str, int]:
    """Number of files by status, ``ok`` first; those of the whole where a part is loaded."""
    return loaded.counts if isinstance(loaded, FeatureFile) and loaded.counts is not None else status_counts(loaded.records)


def images_digest(loaded: Loaded) -> str:
    """Hash of the readable images' contents."""
    if isinstance(loaded, FeatureFile) and loaded.digest:
        return loaded.digest
    return hashlib.sha256("\n".join(loaded.store.ids).encode()).hexdigest()


def classes_digest(classes: ClassSet) -> str:
    """Hash of the class names and of every text about them."""
    plain = to_plain(classes)
    # A run without further names has the hash that it had before there were any.
    told = plain if any(classes.synonyms) else {key: value for key, value in plain.items() if key != "synonyms"}
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def prototypes_digest(prepared: Prepared) -> str:
    """Hash of the class names and of the prototypes that stand for their texts."""
    heads = prepared.heads
    state = {"templates": heads.templates, "descriptions": heads.descriptions, "weighted": heads.weighted}
    return hashlib.sha256((classes_digest(prepared.classes) + state_digest(state)).encode()).hexdigest()


def read_inputs(
    config: RunConfig,
    console: Console,
    hints_copy: Path | None = None,
    processes: Processes = ALONE,
    taken: Taken | None = None,
    *,
    choice_follows: bool = False,
) -> Inputs:
    """Read classes, descriptions, backbone and images; the quick checks come first. Nothing is written but the cache.

    Args:
        config: What the run is.
        console: What to say.
        hints_copy: Read in the place of the user's hints file: what the run that is resumed was started with.
        processes: Those of the run; each reads for itself.
        taken: Rows, names and answers of the file of another tool; None in a run without.
        choice_follows: Whether another method than the configuration's may run on what is read.

    Raises:
        UserError: Any of them cannot be used, or the processes have read different things.
    """
    processes.check_same({"options": json.dumps(to_json(config), sort_keys=True)})
    if processes.count > 1:
        console.say(f"processes: {processes.count} share the images; this is the first")
    given = Given.of(config, hints_copy, taken)
    if given.new:
        listed = len(given.names) - len(given.new)
        joined = f"join the {listed} of the list" if listed else "are the list"
        console.say(f"new classes: {listing([quote(name) for name in given.new])} from the hints {joined}")
    staged = config.stage.name != "none"
    first = before_stage(config) if staged else config
    check_stage(config, given.source, processes.count)
    prepared = prepare(first, given.names, given.descriptions, console, given.source, processes=processes, taxonomy=given.taxonomy)
    if given.extra is not None:
        prepared = replace(prepared, limits=given.extra.wide_enough(prepared.limits))
    with prepared.engine.stopwatch("decode"):
        # A method on features looks at no pixels that are encoded already.
        seldom = not (staged or choice_follows or config.entry.needs_pixels)
        loaded = given.source.load(prepared.limits, console, seldom=seldom)
    if staged:
        prepared = run_stage(prepared, loaded, given.source, config, console)
        given.source.check_views(prepared.task.inference, config.method)
        prepared = with_support(prepared, config, console)
    if given.extra is not None:
        for doubt in given.extra.doubts:
            console.warn(doubt)
        of = given.extra.of_all if is_part(loaded) else given.extra.of
        prepared = replace(prepared, extra=of(loaded, Beside(prepared.engine, prepared.limits.short_side)))
    counts = counts_of(loaded)
    files, said = sum(counts.values()), ", ".join(f"{count} {status}" for status, count in counts.items())
    console.report(f"images: {files} files, {said}", "files", files=files, earlier=0, counts=counts)
    if is_part(loaded):
        console.say(
            f"so many are not held in memory: what the run says of itself, and its page, are about {len(loaded.store)} of them, evenly spread "
            "(docs/scale.md)"
        )
    left_out: list[str] = []
    hints = None
    if given.hints is not None:
        place, listed = Path(given.source.name), given.source.names is not None
        hints = read_hints(given.hints, place, loaded.records, prepared.classes.names, left_out, listed=listed)
    warn_of_hints(left_out, console)
    if hints is not None:
        console.say(describe_hints(hints, prepared.classes.names))
    digests = _digests(prepared, loaded, hints, texts=config.prototypes_file is None)
    processes.check_same({_READ[name]: digest for name, digest in digests.items()})
    return Inputs(prepared, loaded, hints, digests, taken=taken, taxonomy=given.taxonomy)


def warn_of_doubts(config: RunConfig, console: Console, taken: Taken | None = None) -> None:
    """Say what the user's hints may mean otherwise, before any work is done with them.

    Raises:
        UserError: Names or hints cannot be read.
    """
    hints = _hints_of(config, taken)
    if hints is None:
        return
    names, new = names_of_run(_listed(config, taken)[0], hints)
    for doubt in doubts_of(hints, names[: len(names) - len(new)], new):
        console.warn(doubt)


def warn_of_hints(left_out: Sequence[str], console: Console) -> None:
    """Say how many hints are left out, and why the first."""
    if left_out:
        console.warn(f"{counted(len(left_out), 'hint is', 'hints are')} left out, the first because: {left_out[0]}")


@dataclass(frozen=True)
class Given:
    """What the user's files hold, as far as it can be checked before a model is loaded or an image read.

    Attributes:
        source: The photographs.
        names: C class names.
        new: Those that hints name and the list does not.
        descriptions: File of sentences.
        hints: File of answers, or answers that were read elsewhere.
        extra: Further encoders.
        taxonomy: What a table of classes says beside their names.
        left_out: A line for each hint about a file that is not in the folder.
    """

    source: Source
    names: list[str]
    new: list[str]
    descriptions: Path | None
    hints: Path | Told | None
    extra: ExtraFiles | None
    taxonomy: Taxonomy | None
    left_out: Sequence[str] = ()

    @classmethod
    def of(cls, config: RunConfig, hints_copy: Path | None, taken: Taken | None) -> Given:
        """Read and check them."""
        source = source_of_run(config, taken)
        check_hints(config.entry, given=config.hints_file is not None)
        hints = hints_copy or _hints_of(config, taken)
        listed, taxonomy = _listed(config, taken)
        names, new = names_of_run(listed, hints)
        descriptions = None if config.descriptions_file is None else Path(config.descriptions_file)
        if descriptions is not None:
            load_descriptions(descriptions)
        if new and config.prototypes_file is not None:
            raise UserError(f"hints name a class that has no row in --prototypes ({quote(new[0])}); add one, and the name to the class list")
        left_out: list[str] = []
        if hints is not None and Path(source.name).is_dir():
            told = read_hint_labels(hints, Path(source.name), names, source.names, left_out)
            if isinstance(source, FolderSource) and source.is_many:
                source = replace(source, also=frozenset(told))
        extra = read_extra(**further_encoders(config), source_named=config.row_names_file is not None)
        source.check(config.entry)
        return cls(source, names, new, descriptions, hints, extra, None if taxonomy is None else taxonomy.with_names(names), left_out)


def _listed(config: RunConfig, taken: Taken | None) -> tuple[Sequence[str], Taxonomy | None]:
    """Names of the class list, and what a table says of them beside; none where the names come from hints."""
    if taken is not None and config.classes_file == config.in_file:
        return taken.classes, None
    return ([], None) if config.classes_file is None else read_class_list(config.classes_file)


def _hints_of(config: RunConfig, taken: Taken | None) -> Path | Told | None:
    if config.hints_file is None:
        return None
    return Told(config.hints_file, taken.hints or {}) if taken is not None and config.hints_file == config.in_file else Path(config.hints_file)


def _digests(prepared: Prepared, loaded: Loaded, hints: Hints | None, *, texts: bool) -> dict[str, str]:
    """Hashes of what was read, by the event that logs them."""
    digests = {
        "start": state_digest(prepared.engine.backbone.image_state()),
        "images": images_digest(loaded),
        "classes": classes_digest(prepared.classes) if texts else prototypes_digest(prepared),
    }
    if prepared.support is not None:
        digests["support"] = prepared.support.digest
    if prepared.extra is not None:
        digests["extra"] = prepared.extra.digest
    if hints is not None:
        digests["hints"] = hints_digest(hints)
    return digests


def further_files(config: RunConfig) -> tuple[Sequence[str], Sequence[str]]:
    """The files among the further encoders that a run names, and row names of these."""
    options = config.method_options
    return (options.files, options.extra_names) if "extra" in config.entry.needs else ((), ())


def further_encoders(config: RunConfig) -> dict[str, Sequence[str]]:
    """Further encoders that a run names among its method's options, and row names of their files: ``entries`` and ``names_files``."""
    options = config.method_options
    takes = "extra" in config.entry.needs
    return {"entries": options.others if takes else (), "names_files": options.extra_names if takes else ()}
