"""What a run on features may and may not do: which model it has, which methods it takes, what it can predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finelens.backbones.features_only import KIND, FeatureBackbone
from finelens.backbones.registry import load_backbone
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.crops import StoredCrops
from finelens.feature_store.encoder import tower_digest
from finelens.feature_store.files import FeatureFile, feature_metadata, is_feature_path, read_features
from finelens.feature_store.prototypes import Prototypes, check_width, feature_backbone, read_prototypes
from finelens.images.discover import ImageFile, discover
from finelens.methods.registry import METHODS, Method, find_method
from finelens.protocol import Backbone
from finelens.runs.config import RunConfig
from finelens.runs.model import Model


def choose_backbone(source: str | Path, backbone: str | None, prototypes: str | Path | None) -> str:
    """Specification of the model of a run.

    Args:
        source: Folder of photographs or feature file.
        backbone: What the user asked for; None for what the feature file says, else ``embedded``.
        prototypes: The user's prototypes file.

    Returns:
        As ``load_backbone`` takes it, or ``features`` where features and prototypes are all that is needed.

    Raises:
        UserError: The source cannot be used so.
    """
    if not is_feature_path(source):
        return backbone or "embedded"
    known = feature_metadata(Path(source)).get("backbone")
    if prototypes is not None:
        return KIND
    if not known and backbone is not None:
        raise UserError(f"{source} was not written by finelens features, so --backbone {backbone} cannot be checked against it; give --prototypes")
    if not known:
        raise UserError(f"{source} does not name the model of its features: give that model's class prototypes with --prototypes FILE")
    return backbone or known


def open_source(config: RunConfig, method: Method) -> list[ImageFile] | FeatureFile:
    """The photographs of a run, listed, or its feature file, read.

    Raises:
        UserError: Neither is there, or the method cannot use the features.
    """
    if not is_feature_path(config.photos):
        for name, value in (("--row-names", config.row_names_file), ("--logit-scale", config.logit_scale)):
            if value is not None:
                raise UserError(f"{name} has an effect on feature files only, and {config.photos} is none; leave it out")
        return discover(Path(config.photos))
    if config.strict:
        raise UserError(f"--strict looks into photographs, and {config.photos} holds features; leave it out")
    file = read_features(Path(config.photos), None if config.row_names_file is None else Path(config.row_names_file))
    refuse_pixels_method(method, config.photos, file.store.crops)
    return file


def refuse_pixels_method(method: Method, what: str, crops: StoredCrops | None = None) -> None:
    """Refuse a method that looks at more of a photograph than there is: features of the whole, and perhaps of its crops."""
    if method.trains or (method.needs_pixels and crops is None):
        names = ", ".join(method.name for method in METHODS if not method.needs_pixels)
        raise UserError(
            f"method {method.name} needs photographs, and {what} holds features; methods that take features: {names}; "
            "and wca where finelens features --crops 60 wrote them"
        )


def prototypes_of_run(config: RunConfig, names: Sequence[str], features: FeatureFile | None) -> Prototypes | None:
    """The user's prototypes; None where texts are encoded.

    Raises:
        UserError: They cannot be read, or options contradict them.
    """
    if config.prototypes_file is None:
        return None
    for name, value in (("--descriptions", config.descriptions_file), ("text.templates", config.text.templates)):
        if value is not None:
            raise UserError(f"{name} has no effect beside --prototypes, which stand for the texts; leave one of the two out")
    found = read_prototypes(Path(config.prototypes_file), names)
    if features is not None:
        check_width(found, features.dim, f"{features.path} has")
    return found


def open_backbone(config: RunConfig, features: FeatureFile | None, prototypes: Prototypes | None, console: Console) -> Backbone:
    """The backbone of a run, checked against its features and prototypes.

    Raises:
        UserError: It cannot be loaded or does not fit.
    """
    if config.backbone == KIND:
        if features is None or prototypes is None:
            raise UserError("--backbone features is what a run on a feature file and --prototypes gets; with photographs give a model")
        return feature_backbone(features, prototypes, config.logit_scale, console)
    if config.logit_scale is not None:
        raise UserError(f"--logit-scale has no effect: backbone {config.backbone} has its own; leave it out")
    backbone = load_backbone(config.backbone)
    if prototypes is not None:
        check_width(prototypes, backbone.dim, f"features of backbone {config.backbone}")
    if features is not None and features.tower != tower_digest(backbone):
        raise UserError(
            f"{features.path} was made with other weights or preprocessing than backbone {config.backbone} has now; "
            "write it again with finelens features, or give the --backbone it was made with"
        )
    return backbone


def check_tower(model: Model) -> None:
    """Refuse photographs for a model that knows features only."""
    backbone = model.engine.backbone
    if isinstance(backbone, FeatureBackbone):
        backbone.refuse_pixels()


def check_prediction(model: Model, file: FeatureFile) -> None:
    """Refuse features that the model cannot classify.

    Raises:
        UserError: The model's tower was trained, or the features are of another model.
    """
    backbone = model.engine.backbone
    if find_method(model.method).trains:
        raise UserError(f"the run's method {model.method} needs photographs, and {file.path} holds features; give the folder of photographs")
    if isinstance(backbone, FeatureBackbone):
        if file.dim != backbone.dim:
            raise UserError(f"{file.path} has features of {file.dim} columns, the run was made on {backbone.dim}; use features of the same model")
        fits = not file.tower or not backbone.tower or file.tower == backbone.tower
    else:
        with model.unadapted():
            fits = file.tower == tower_digest(backbone)
    if not fits:
        raise UserError(
            f"{file.path} holds features of another model than the run's ({backbone.name}); "
            "write it with finelens features and that --backbone, or give the photographs"
        )
