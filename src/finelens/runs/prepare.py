"""Everything that a method starts from: backbone, texts, heads, task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finelens.backbones.registry import EMBEDDED
from finelens.classes.alignment_report import DescriptionReport
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import ClassHeads, build_heads
from finelens.classes.made_up import NameTexts, name_texts
from finelens.classes.misspelt import misspelt
from finelens.classes.taxonomy import Taxonomy
from finelens.classes.templates import read_templates
from finelens.classes.text_files import counted, listing, quote
from finelens.core.console import Console
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.distributed import ALONE, Processes
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.weak_start import Start, start_of
from finelens.feature_store.extra import Extra
from finelens.feature_store.prototypes import Prototypes, read_prototypes
from finelens.feature_store.support import SupportImages, read_support
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.registry import Method
from finelens.protocol import Backbone, ClassSet, TargetFeatures, Task
from finelens.runs.alarms import check_text_features
from finelens.runs.config import RunConfig
from finelens.runs.photo_source import PHOTOGRAPHS
from finelens.runs.source import Source
from finelens.training.loss_form import LossForm


@dataclass(frozen=True)
class Prepared:
    """Everything a method starts from.

    Attributes:
        method: Its line in the registry.
        classes: Names and texts.
        report: What became of the descriptions; None without.
        engine: Runs the backbone.
        heads: Text heads.
        task: The method's task, not prepared yet.
        limits: What decoding refuses and reduces.
        support: Images of the classes from outside the target set; None where the method takes none.
        extra: Features of further encoders for the target images, in store order; None in a run without.
        name_texts: Class names beside made-up words; None where no text was encoded.
        stage: What the stage before the method did; None in a run without.
    """

    method: Method
    classes: ClassSet
    report: DescriptionReport | None
    engine: Engine
    heads: ClassHeads
    task: Task
    limits: DecodeLimits
    support: SupportImages | None = None
    extra: Extra | None = None
    name_texts: NameTexts | None = None
    stage: Mapping[str, Any] | None = None


def prepare(
    config: RunConfig,
    names: Sequence[str],
    descriptions: str | Path | Mapping[str, Any] | None,
    console: Console,
    source: Source = PHOTOGRAPHS,
    prototypes: Prototypes | None = None,
    processes: Processes = ALONE,
    taxonomy: Taxonomy | None = None,
) -> Prepared:
    """Load the backbone, align and encode the texts, build the task.

    Args:
        config: The run.
        names: Class names.
        descriptions: Sentences about the classes.
        console: What to say.
        source: Where the images come from.
        prototypes: What stands for the texts; by default what the configuration names.
        processes: Those that share the work of the image tower.
        taxonomy: Further names of the classes; None for none.

    Raises:
        UserError: Whatever the user can mend: backbone, device, texts, options.
    """
    # Refused before anything is loaded.
    support_folder(config)
    device = processes.device(choose_device(config.device))
    prototypes = _prototypes(config, names) if prototypes is None else prototypes
    backbone = source.open_backbone(config, prototypes, console)
    if config.backbone == EMBEDDED:
        console.say("model: the small one that ships with finelens (embedded)")
    if prototypes is None:
        classes, report = _class_set(config, names, descriptions, backbone, console, taxonomy)
    else:
        classes, report = prototypes.classes, None
        for doubt in prototypes.doubts:
            console.warn(doubt)
    precision = choose_precision(config.training.precision, device)
    console.detail(f"precision: {precision.reason}")
    engine = Engine(backbone, device, precision)
    engine.micro.say = console.warn
    engine.console = console
    engine.processes = processes
    with engine.stopwatch("texts"):
        heads = build_heads(backbone, classes) if prototypes is None else prototypes.heads.to(device)
        named = name_texts(backbone, classes) if prototypes is None else None
    check_text_features(heads, classes.names, console)
    prepared = replace(assemble(config, engine, heads, classes, report), name_texts=named)
    source.check_views(prepared.task.inference, config.method)
    return with_support(prepared, config, console)


def with_support(prepared: Prepared, config: RunConfig, console: Console) -> Prepared:
    """The same with the images of the support set of a method that needs one."""
    folder = support_folder(config)
    if folder is None:
        return prepared
    return replace(
        prepared, support=read_support(folder, prepared.classes.names, prepared.limits, console, captions=config.method_options.needs_captions)
    )


def assemble(config: RunConfig, engine: Engine, heads: ClassHeads, classes: ClassSet, report: DescriptionReport | None = None) -> Prepared:
    """Everything that the configuration's method starts from, around an engine and text heads that are there already.

    Raises:
        UserError: Another loss is asked for than the method's own.
    """
    task = config.entry.build(engine, heads, config.method_options, config.training, config.seed)
    if config.entry.trains and config.training.loss != LossForm.name:
        if not task.takes_loss:
            raise UserError(f"training.loss={config.training.loss} has no effect: the loss of method {config.method} is its own; leave it out")
        task.loss_form = LossForm.of(config.training, config.seed)
    limits = decode_limits(config.views, engine.backbone.preprocess)
    return Prepared(config.entry, classes, report, engine, heads, task, limits)


def with_method(prepared: Prepared, config: RunConfig) -> Prepared:
    """The method that the configuration names, with what was loaded for another."""
    own = assemble(config, prepared.engine, prepared.heads, prepared.classes, prepared.report)
    return replace(prepared, method=own.method, task=own.task)


def support_folder(config: RunConfig) -> Path | None:
    """Folder of the support set of a method that needs one; None for another method.

    Raises:
        UserError: It needs one, and there is none.
    """
    return Path(config.method_options.folder(config.method)) if "support" in config.entry.needs else None


def _prototypes(config: RunConfig, names: Sequence[str]) -> Prototypes | None:
    """The user's prototypes; None where texts are encoded.

    Raises:
        UserError: They cannot be read, or options contradict them.
    """
    if config.prototypes_file is None:
        return None
    for name, value in (("--descriptions", config.descriptions_file), ("text.templates", config.text.templates)):
        if value is not None:
            raise UserError(f"{name} has no effect beside --prototypes, which stand for the texts; leave one of the two out")
    return read_prototypes(Path(config.prototypes_file), names)


def release_text(prepared: Prepared) -> None:
    """Give back the memory of the text tower, once the method is chosen, where no text is left to encode. For runs that own their backbone."""
    if not prepared.task.needs_text and prepared.support is None:
        prepared.engine.backbone.release_text()


def _class_set(
    config: RunConfig,
    names: Sequence[str],
    descriptions: str | Path | Mapping[str, Any] | None,
    backbone: Backbone,
    console: Console,
    taxonomy: Taxonomy | None,
) -> tuple[ClassSet, DescriptionReport | None]:
    templates = None if config.text.templates is None else read_templates(Path(config.text.templates))
    synonyms = taxonomy.synonyms if taxonomy is not None and config.text.synonyms else ()
    if any(synonyms):
        count = counted(sum(map(bool, synonyms)), "class", "classes")
        console.say(f"further names of {count}: {sum(map(len, synonyms))} are texts too (--set text.synonyms=false: names alone)")
    classes, report, warnings = build_class_set(
        names, descriptions, templates, synonyms, count_tokens=backbone.count_tokens, context_length=backbone.context_length
    )
    for warning in warnings:
        console.warn(warning)
    if slips := misspelt(names):
        told = listing([f"{quote(word)} ({quote(meant)}?)" for word, meant in slips.items()])
        console.say(f"words of class names that may be misspelt, and the model reads them as they stand: {told}")
    for line in [] if report is None else report.lines():
        console.say(line)
    if report is None:
        console.say(f"no descriptions of the {len(classes)} classes given (--descriptions FILE): their names alone stand for them")
        console.detail(f"{len(classes.templates)} templates stand in for descriptions")
    return classes, report


def unadapted_logits(prepared: Prepared, features: TargetFeatures) -> tuple[Tensor, Tensor | None]:
    """Logits (N, C) on the host of the unadapted model with templates and with descriptions; None in place of the second without any."""
    heads = [prepared.heads.templates] if prepared.report is None else [prepared.heads.templates, prepared.heads.descriptions]
    found = [cosine_logits(prepared.engine, features.global_, head).float().cpu() for head in heads]
    return found[0], None if prepared.report is None else found[1]


def start_from(prepared: Prepared, features: TargetFeatures) -> Start:
    """What the unadapted model knows of the classes, by its answers for some images."""
    first, described = unadapted_logits(prepared, features)
    return start_of(first.softmax(1), None if described is None else described.softmax(1))
