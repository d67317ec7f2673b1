"""Why one photograph got its class: what the descriptions say, where the method looked, and the nearest photographs of both classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.features_only import KIND as FEATURES_ONLY
from finelens.backbones.registry import load_backbone
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import encode_descriptions
from finelens.classes.templates import fill, read_templates
from finelens.classes.text_files import listing
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.evaluation.signals import content_of
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.decode import DecodedImage, decode
from finelens.images.discover import display_name
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.intake.taken import saved
from finelens.protocol import ClassSet
from finelens.reporting.own_photos import contents_of, warn_of_others
from finelens.reporting.record import read_run
from finelens.runs.config import RunConfig
from finelens.runs.folder import RunFolder
from finelens.runs.model import Model
from finelens.runs.predict import predict_items
from finelens.runs.sources import source_of_run
from finelens.storage.predictions import read_predictions, softmax

if TYPE_CHECKING:
    from finelens.runs.classifier import Classifier

NEAREST = 4
# Texts of a class on the console; the page has all.
SAID = 5
# What stands in the place of the nearest photographs.
NONE_ALIKE = "no other photograph of the run was given this class"
NOT_THERE = "the photographs of the run are not shown: they are not where they were, or features of another model stand for them"
PROTOTYPES = "the run has prototypes in the place of texts"


@dataclass(frozen=True)
class Side:
    """One of the two classes compared.

    Attributes:
        name: The class.
        probability: What the run gives it.
        sentences: Texts about the class with their cosines to the photograph, largest first, from the unadapted model.
        nearest: Photographs of the run that it gave this class, with their cosines to this one, largest first; None where the run's photographs are
            gone.
    """

    name: str
    probability: float
    sentences: tuple[tuple[str, float], ...]
    nearest: tuple[tuple[str, float], ...] | None

    @property
    def without_nearest(self) -> str:
        """Why there are none to show."""
        return NOT_THERE if self.nearest is None else NONE_ALIKE


@dataclass(frozen=True)
class Explanation:
    """What can be said of one photograph.

    Attributes:
        image: The file.
        pixels: (3, H, W) uint8.
        view: What the model saw of it, (3, S, S) uint8.
        sides: The likeliest class and the second.
        zero_shot: What the unadapted model says.
        described: Whether the sentences are the user's descriptions; else filled templates.
        without_texts: Why there are no sentences; half a sentence.
        maps: Where the method looked, (h, w) in [0, 1], by what the map is.
    """

    image: Path
    pixels: Tensor
    view: Tensor
    sides: tuple[Side, ...]
    zero_shot: str
    described: bool
    without_texts: str
    maps: dict[str, Tensor]

    def lines(self) -> list[str]:
        """For the console."""
        said = [f"{self.image}: {self.sides[0].name} {self.sides[0].probability:.1%}, the unadapted model says {self.zero_shot}"]
        for side in self.sides:
            said.append(f"{side.name} ({side.probability:.1%})")
            said += [f"  {cosine:+.3f}  {sentence}" for sentence, cosine in side.sentences[:SAID]]
            said += [f"  {self.without_texts}"] if not side.sentences else []
            said += [f"  and {more} more texts, down to {side.sentences[-1][1]:+.3f}"] if (more := len(side.sentences) - SAID) > 0 else []
            said += [f"  like {path} ({cosine:.3f})" for path, cosine in side.nearest or ()] or [f"  {side.without_nearest}"]
        return said


def _as_file(image: Path, folder: RunFolder) -> Path:
    """The file of a photograph: the path itself, or as ``predictions.csv`` names those of the run."""
    if image.exists():
        return image
    folder.need_photographs()
    inside = Path(folder.config.photos) / image
    archive = next((part for path in (image, inside) for part in path.parents if part.is_file()), None)
    if archive is not None:
        raise UserError(f"{image} lies in an archive, and explain reads a file; unpack {archive.name} and give the photograph")
    return inside if inside.exists() else image


def explain_image(folder: RunFolder, classifier: Classifier, image: Path, console: Console) -> Explanation:
    """Explain the answer of a finished run for one photograph.

    Args:
        folder: The run.
        classifier: Its model.
        image: The photograph; one of the run's or another.
        console: Progress.

    Raises:
        UserError: The photograph cannot be read, the run has no model that could encode it, or its texts are gone.
    """
    config, model = folder.config, classifier.model
    if config.backbone == FEATURES_ONLY:
        raise UserError(
            f"{folder.path} is on features and prototypes alone: it has no model to encode {image} with; explain takes runs on photographs, "
            "and runs with texts on what finelens features wrote"
        )
    files = [str(encoder) for encoder in model.extra if not encoder.encodes]
    if files:
        raise UserError(
            f"{folder.path} looks at features that {listing(files)} made, which came from a file that explain does not have of {image}; "
            "ask finelens predict with --extra"
        )
    image = _as_file(image, folder)
    decoded = decode(image, classifier.limits)
    if not isinstance(decoded, DecodedImage):
        raise UserError(f"{image}: {decoded.status}, {decoded.reason}")
    known = contents_of(read_run(folder))
    name = _own_name(image, config.photos)
    warn_of_others({name} if _differs(known, name, decoded.sha256) else (), config.photos, "what is explained is the photograph of now", console)
    found = predict_items(classifier.request(Console(enabled=False)), [str(image)])
    p = softmax(found.logits["logits"].numpy())[0]
    best = [int(c) for c in (-p).argsort(kind="stable")[:2]]
    with model.unadapted():
        encoder = FeatureEncoder(model.engine, classifier.limits.short_side)
        own = encoder.centre(load_images([str(image)], classifier.limits).store, Console(enabled=False), "look").global_[0].cpu()
        near = _nearest(folder, classifier, encoder, decoded.sha256, own, [classifier.classes[c] for c in best], known, console)
    # The text tower that a stage left is not kept.
    spoken = config.prototypes_file is None and config.stage.name == "none"
    texts, described = _texts(config, classifier.classes, best, own) if spoken else ([() for _ in best], False)
    view = centre_view(decoded.pixels, model.engine.backbone.preprocess)
    sides = tuple(Side(classifier.classes[c], float(p[c]), said, others) for c, said, others in zip(best, texts, near, strict=True))
    zero_shot = classifier.classes[int(found.zero_shot["templates"][0].argmax())]
    without = PROTOTYPES if classifier.stage == "none" else f"the text tower that --stage {classifier.stage} left is not kept"
    return Explanation(image, decoded.pixels, view, sides, zero_shot, described, without, maps(model, view, {classifier.classes[c]: c for c in best}))


def _own_name(image: Path, photos: str) -> str:
    """What the run calls a photograph, if it is one of its own; else its path."""
    real, place = Path(os.path.realpath(image)), Path(os.path.realpath(photos))
    return display_name(real.relative_to(place)) if real.is_relative_to(place) else str(image)


def _differs(known: Mapping[str, str], name: str, sample_id: str) -> bool:
    return known.get(name, content_of(sample_id)) != content_of(sample_id)


def _nearest(
    folder: RunFolder,
    classifier: Classifier,
    encoder: FeatureEncoder,
    digest: str,
    own: Tensor,
    names: Sequence[str],
    known: Mapping[str, str],
    console: Console,
) -> list[tuple[tuple[str, float], ...] | None]:
    """Photographs of the run with each of the classes that are most like the image; exact copies of it say nothing. None where they are gone.

    Photographs that are others than the run saw under their names (``known``) are passed over.
    """
    given = {row.path: row.label for row in read_predictions(folder.predictions_path)}
    try:
        source, limits = source_of_run(folder.config, saved(folder.taken_path)), classifier.limits
        records, ids, features = source.joint_features(encoder, limits, lambda name: given.get(name) in names, console)
    except UserError as error:
        console.warn(f"the run's photographs are not shown: {error}")
        return [None for _ in names]
    cosines = features.cpu() @ own  # (N,)
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in names}
    for record in records:
        label = given.get(record.name)
        if record.index is None or label not in found or _differs(known, record.name, ids[record.index]):
            continue
        if ids[record.index].partition("-")[0] != digest:
            found[label].append((record.name, float(cosines[record.index])))
    return [tuple(sorted(found[name], key=lambda item: -item[1])[:NEAREST]) for name in names]


def _texts(config: RunConfig, classes: Sequence[str], wanted: Sequence[int], own: Tensor) -> tuple[list[tuple[tuple[str, float], ...]], bool]:
    """Cosines of the classes' sentences with the image, and whether they are descriptions rather than filled templates."""
    templates = None if config.text.templates is None else read_templates(Path(config.text.templates))
    class_set, report, _ = build_class_set(classes, config.descriptions_file, templates)
    names, descriptions = tuple(class_set.names[c] for c in wanted), tuple(class_set.descriptions[c] for c in wanted)
    features = encode_descriptions(load_backbone(config.backbone), ClassSet(names, class_set.templates, descriptions))
    result = []
    for c, rows in zip(wanted, features, strict=True):
        sentences = class_set.descriptions[c] or tuple(fill(template, class_set.names[c]) for template in class_set.templates)
        cosines = (F.normalize(rows.float().cpu(), dim=1) @ own).tolist()
        result.append(tuple(sorted(zip(sentences, cosines, strict=True), key=lambda item: -item[1])))
    return result, report is not None


def maps(model: Model, view: Tensor, best: Mapping[str, int]) -> dict[str, Tensor]:
    """Maps (h, w) in [0, 1] over a centre view (3, S, S) uint8.

    Those that the method has of its own; for any other, the cosine of each projected patch token with the text prototype of the likeliest class and
    of the second, each stretched to [0, 1]: a likeness of patches and texts, no account of what the method did.

    Args:
        model: The model.
        view: The view.
        best: These two classes by name, as columns of the answer.
    """
    rows, columns = model.engine.backbone.grid
    own = {what: values[0] for what, values in model.task.attention_maps(view[None]).items()}
    if not own:
        tokens = model.engine.encode_frozen(view[None], patches=True)
        if tokens.patches is not None and model.task.inference is None:
            patches = F.normalize(model.engine.backbone.project(tokens.patches)[0].float(), dim=-1)  # (N, E)
            for name, c in best.items():
                own[f"patches most like the prototype of {name}"] = _stretched(patches @ model.zero_shot_heads["descriptions"][c].to(patches.device))
    return {what: values.detach().float().cpu().view(rows, columns) for what, values in own.items() if values.numel() == rows * columns}


def _stretched(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)
