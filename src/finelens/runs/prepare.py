"""Everything that a method starts from: backbone, texts, heads, task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finelens.classes.alignment_report import DescriptionReport
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import ClassHeads, build_heads
from finelens.classes.templates import read_templates
from finelens.core.console import Console
from finelens.core.options import from_mapping
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.distributed import ALONE, Processes
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.weak_start import Start, start_of
from finelens.feature_store.crops import crops_for
from finelens.feature_store.extra import Extra
from finelens.feature_store.files import FeatureFile
from finelens.feature_store.prototypes import Prototypes
from finelens.feature_store.support import SupportImages, read_support
from finelens.images.load import decode_limits
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.support import SupportConfig
from finelens.methods.parts.views import ViewTask
from finelens.methods.registry import Method, find_method
from finelens.protocol import Backbone, ClassSet, TargetFeatures, Task
from finelens.runs.alarms import check_text_features
from finelens.runs.config import RunConfig
from finelens.runs.sources import open_backbone, prototypes_of_run


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
        support: Images of the classes from outside the target set; None where the method takes none.
        extra: Features of further encoders for the target images, in store order; None in a run without.
    """

    method: Method
    classes: ClassSet
    report: DescriptionReport | None
    engine: Engine
    heads: ClassHeads
    task: Task
    support: SupportImages | None = None
    extra: Extra | None = None


def prepare(
    config: RunConfig,
    names: Sequence[str],
    descriptions: str | Path | Mapping[str, Any] | None,
    console: Console,
    features: FeatureFile | None = None,
    prototypes: Prototypes | None = None,
    processes: Processes = ALONE,
) -> Prepared:
    """Load the backbone, align and encode the texts, build the task.

    Args:
        config: The run.
        names: Class names.
        descriptions: Sentences about the classes.
        console: What to say.
        features: The feature file of a run without photographs.
        prototypes: What stands for the texts; by default what the configuration names.
        processes: Those that share the work of the image tower.

    Raises:
        UserError: Whatever the user can mend: backbone, device, texts, options.
    """
    method = find_method(config.method)
    options: Any = from_mapping(method.config_class, config.method_options, "method")
    # Refused before anything is loaded.
    folder = options.folder(method.name) if isinstance(options, SupportConfig) else None
    if folder is not None and features is not None:
        raise UserError(
            f"method {method.name} encodes a support set with the model of the photographs, which a feature file lacks; give the photographs"
        )
    device = processes.device(choose_device(config.device))
    prototypes = prototypes_of_run(config, names, features) if prototypes is None else prototypes
    backbone = open_backbone(config, features, prototypes, console)
    if config.backbone == "embedded":
        console.say("backbone: embedded (EfficientNet-Lite0 + MiniLM, a stand-in that knows what is near ImageNet); --backbone takes a CLIP model")
    if prototypes is None:
        classes, report = _class_set(config, names, descriptions, backbone, console)
    else:
        classes, report = prototypes.classes, None
    precision = choose_precision(config.training.precision, device)
    console.say(f"precision: {precision.reason}")
    engine = Engine(backbone, device, precision)
    engine.micro.say = console.warn
    engine.console = console
    engine.processes = processes
    with engine.stopwatch("texts"):
        heads = build_heads(backbone, classes) if prototypes is None else prototypes.heads.to(device)
    check_text_features(heads, classes.names)
    task = method.build(engine, heads, options, config.training, config.seed)
    if features is not None and isinstance(task, ViewTask):
        crops_for(features.store.crops, task.inference, method.name)
    support = None
    if folder is not None:
        limits = decode_limits(config.views, backbone.preprocess)
        support = read_support(Path(folder), classes.names, limits, console, captions=options.needs_captions)
    return Prepared(method, classes, report, engine, heads, task, support)


def release_text(prepared: Prepared) -> None:
    """Give back the memory of the text tower, once the method is chosen, where no text is left to encode. For runs that own their backbone."""
    if not prepared.task.needs_text and prepared.support is None:
        prepared.engine.backbone.release_text()


def _class_set(
    config: RunConfig, names: Sequence[str], descriptions: str | Path | Mapping[str, Any] | None, backbone: Backbone, console: Console
) -> tuple[ClassSet, DescriptionReport | None]:
    templates = None if config.text.templates is None else read_templates(Path(config.text.templates))
    classes, report, warnings = build_class_set(
        names, descriptions, templates, count_tokens=backbone.count_tokens, context_length=backbone.context_length
    )
    for warning in warnings:
        console.warn(warning)
    for line in [] if report is None else report.lines():
        console.say(line)
    if report is None:
        console.say(
            f"no descriptions given: {len(classes.templates)} templates stand in for all {len(classes)} classes (--descriptions FILE is better)"
        )
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
