"""Everything that a run reads, loaded, checked and hashed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelens.classes.descriptions import load_descriptions
from finelens.classes.hints import describe_hints, hints_digest, read_hint_labels, read_hints
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.core.options import from_mapping, to_plain
from finelens.engine.distributed import ALONE, Processes
from finelens.feature_store.extra import ExtraFiles, read_extra
from finelens.feature_store.files import FeatureFile
from finelens.images.complaints import note_complaints
from finelens.images.load import decode_limits, load, status_counts
from finelens.images.store import LoadedImages
from finelens.methods.joint_gmm import JointGmmConfig
from finelens.methods.registry import check_hints, find_method
from finelens.protocol import ClassSet, Hints
from finelens.runs.config import RunConfig, to_json
from finelens.runs.prepare import Prepared, prepare
from finelens.runs.sources import open_source
from finelens.storage.cache import spill_folder, state_digest

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
    """

    prepared: Prepared
    loaded: LoadedImages | FeatureFile
    hints: Hints | None
    digests: dict[str, str]
    choice: str | None = None


def images_digest(loaded: LoadedImages | FeatureFile) -> str:
    """Hash of the readable images' contents."""
    return hashlib.sha256("\n".join(loaded.store.ids).encode()).hexdigest()


def classes_digest(classes: ClassSet) -> str:
    """Hash of the class names and of every text about them."""
    return hashlib.sha256(json.dumps(to_plain(classes)).encode()).hexdigest()


def prototypes_digest(prepared: Prepared) -> str:
    """Hash of the class names and of the prototypes that stand for their texts."""
    heads = prepared.heads
    state = {"templates": heads.templates, "descriptions": heads.descriptions, "weighted": heads.weighted}
    return hashlib.sha256((classes_digest(prepared.classes) + state_digest(state)).encode()).hexdigest()


def read_inputs(config: RunConfig, console: Console, hints_copy: Path | None = None, processes: Processes = ALONE) -> Inputs:
    """Read classes, descriptions, backbone and images; the quick checks come first. Nothing is written but the cache.

    Args:
        config: What the run is.
        console: What to say.
        hints_copy: Read in the place of the user's hints file: what the run that is resumed was started with.
        processes: Those of the run; each reads for itself.

    Raises:
        UserError: Any of them cannot be used, or the processes have read different things.
    """
    processes.check_same({"options": json.dumps(to_json(config), sort_keys=True)})
    check_hints(find_method(config.method), given=config.hints_file is not None)
    if processes.count > 1:
        console.say(f"processes: {processes.count} share the images; this is the first")
    names = read_class_file(Path(str(config.classes_file)))
    descriptions = None if config.descriptions_file is None else Path(config.descriptions_file)
    if descriptions is not None:
        load_descriptions(descriptions)
    hints_file = hints_copy or (None if config.hints_file is None else Path(config.hints_file))
    if hints_file is not None and Path(config.photos).is_dir():
        read_hint_labels(hints_file, Path(config.photos), names)
    further = extra_files(config)
    source = open_source(config, find_method(config.method))
    if isinstance(source, FeatureFile):
        prepared = prepare(config, names, descriptions, console, source, processes=processes)
        loaded: LoadedImages | FeatureFile = source
    else:
        prepared = prepare(config, names, descriptions, console, processes=processes)
        with prepared.engine.stopwatch("decode"):
            loaded = load(source, decode_limits(config.views, prepared.engine.backbone.preprocess), console, spill_folder())
        if config.strict:
            loaded = replace(loaded, records=note_complaints(source, loaded.records, console))
    if further is not None:
        prepared = replace(prepared, extra=further.of(loaded))
    counts = status_counts(loaded.records)
    console.say(f"images: {len(loaded.records)} files, " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    digests = {
        "start": state_digest(prepared.engine.backbone.image_state()),
        "images": images_digest(loaded),
        "classes": classes_digest(prepared.classes) if config.prototypes_file is None else prototypes_digest(prepared),
    }
    if prepared.support is not None:
        digests["support"] = prepared.support.digest
    if prepared.extra is not None:
        digests["extra"] = prepared.extra.digest
    hints = None
    if hints_file is not None:
        hints = read_hints(hints_file, Path(config.photos), loaded.records, prepared.classes.names)
        digests["hints"] = hints_digest(hints)
        console.say(describe_hints(hints, prepared.classes.names))
    processes.check_same({_READ[name]: digest for name, digest in digests.items()})
    return Inputs(prepared, loaded, hints, digests)


def extra_files(config: RunConfig) -> ExtraFiles | None:
    """Feature files of further encoders that a run names among its method's options; None where it names none.

    Raises:
        UserError: They cannot be read.
    """
    options: Any = from_mapping(find_method(config.method).config_class, config.method_options, "method")
    if not isinstance(options, JointGmmConfig):
        return None
    return read_extra(options.files, options.extra_names, source_named=config.row_names_file is not None)
