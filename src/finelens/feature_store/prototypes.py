"""Prototypes of the classes from a file, in the place of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.backbones.features_only import FeatureBackbone
from finelens.classes import heads
from finelens.classes.heads import ClassHeads
from finelens.classes.names import check_names
from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.files import (
    FORMAT,
    IN_MEMORY,
    FeatureFile,
    check_matrix,
    named_tensors,
    quantised,
    read_matrix,
    stored_scale,
)
from finelens.feature_store.paths import SUFFIXES
from finelens.protocol import ClassSet

DEFAULT_SCALE = 100.0
# Below this a scale is likelier the logarithm in which models keep it than one that a model has learned.
LEAST_SCALE = 10.0
# The transpose of square prototypes is doubted where the features are so many times nearer to its rows.
NEARER = 1.5
# Rows that were normalised in half precision have length 1 up to this.
UNIT = 2e-3
_TURNED = "they look transposed; save one row a class"
_KEYS = ("prototypes", "text_features", "text_embeds", "weights")


@dataclass(frozen=True)
class Prototypes:
    """Heads read from a file.

    Attributes:
        path: The file.
        heads: For the methods; their class set has names and no words, and the rows stand for the features of its texts.
        logit_scale: The model's multiplier of cosines; None where the file does not say.
        logit_bias: The model's additive term; None where the file does not say.
        doubts: What the numbers look like that they should not be; lines to warn of.
    """

    path: Path
    heads: ClassHeads
    logit_scale: float | None
    logit_bias: float | None
    doubts: tuple[str, ...] = ()

    @property
    def classes(self) -> ClassSet:
        """Names, without texts."""
        assert self.heads.classes is not None
        return self.heads.classes

    @property
    def dim(self) -> int:
        """Width of the prototypes."""
        return self.heads.templates.shape[1]


def read_prototypes(path: Path, class_names: Sequence[str]) -> Prototypes:
    """Read one prototype or several of each class.

    Args:
        path: ``.npy`` (C, D) or (C, K, D), or ``.safetensors`` with ``prototypes`` of such a shape and optionally ``descriptions`` (C, D), and
            ``sentences`` (T, D) with ``sentence_class`` (T,), the class of each. Rows in the order of the class file. Rows of length 0 in
            (C, K, D) only fill up.
        class_names: C names.

    Raises:
        UserError: The file cannot be read, or does not fit the classes.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"prototypes file {path}: prototypes are read from .npy and .safetensors files; save them as one of these")
    names = check_names(class_names)
    tensors, metadata = named_tensors(path)
    if metadata.get("format") == FORMAT and "prototypes" not in tensors:
        raise UserError(f"{path} holds no prototypes; write it again with finelens features ... --classes FILE, or give another --prototypes")
    if "classes" in metadata and json.loads(metadata["classes"]) != names:
        raise UserError(
            f"{path}: its prototypes are of other classes, or in another order, than the class file; give the class file they were made with"
        )
    own = check_matrix(tensors["descriptions"], path, "descriptions") if "descriptions" in tensors else None
    scale, bias = stored_scale(path, tensors, metadata)
    return _prototypes(path, names, _groups(path, tensors, names), _sentences(path, tensors, names), own, scale, bias)


def given_prototypes(value: Tensor | np.ndarray, class_names: Sequence[str]) -> Prototypes:
    """Prototypes (C, D) or (C, K, D) from Python, as :func:`read_prototypes` takes them.

    Raises:
        UserError: They are no such array, or do not fit the classes.
    """
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    rows = check_matrix(tensor, IN_MEMORY, "prototypes", (2, 3))
    return _prototypes(IN_MEMORY, check_names(class_names), _directions(rows), None, None, None, None)


def _prototypes(
    path: Path,
    names: list[str],
    groups: list[Tensor],
    sentences: list[Tensor] | None,
    own: Tensor | None,
    logit_scale: float | None,
    logit_bias: float | None,
) -> Prototypes:
    if len(groups) != len(names):
        turned = " (they look transposed: save their transpose)" if groups[0].shape[1] == len(names) else ""
        raise UserError(
            f"{path}: {counted(len(groups), 'prototype', 'prototypes')} for {counted(len(names), 'class', 'classes')}; "
            f"give one each, in order{turned}"
        )
    empty = [name for name, group in zip(names, groups, strict=True) if not len(group)]
    if empty:
        raise UserError(f"{path}: the prototype of class {empty[0]!r} has length 0; leave the class out or give it a prototype")
    single = all(len(group) == 1 for group in groups)
    mean = heads.mean_description_head(groups)
    if own is not None and own.shape != mean.shape:
        raise UserError(f"{path}: descriptions of shape {tuple(own.shape)} beside prototypes of {tuple(mean.shape)}; give one row a class in both")
    sentences = sentences or groups
    padded = heads.pad_descriptions(sentences)
    weighted = heads.weighted_description_head(padded, heads.description_weights(padded, mean))
    classes = ClassSet(tuple(names), (), ((),) * len(names))
    described = F.normalize(own, dim=1) if own is not None else heads.mean_description_head(sentences)
    return Prototypes(
        path,
        ClassHeads(mean, described, weighted, tuple(sentences), classes, texts=tuple(sentences)),
        logit_scale,
        logit_bias,
        (*quantised(torch.cat(groups), path, "prototypes"), *(_columns_of_length_one(torch.cat(groups), path) if single else ())),
    )


def _groups(path: Path, tensors: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    """Rows (K, D) of each class that have a direction."""
    found = next((tensors[key] for key in _KEYS if key in tensors), None)
    if found is None and "sentences" in tensors:
        return _sentences(path, tensors, names) or []
    value = read_matrix(path, tensors, _KEYS, "prototypes", (2, 3)) if found is None else check_matrix(found, path, "prototypes", (2, 3))
    return _directions(value)


def _directions(value: Tensor) -> list[Tensor]:
    return [rows[rows.norm(dim=-1) > 0] for rows in (value[:, None] if value.ndim == 2 else value)]


def _sentences(path: Path, tensors: dict[str, Tensor], names: list[str]) -> list[Tensor] | None:
    if "sentences" not in tensors:
        return None
    rows = check_matrix(tensors["sentences"], path, "sentences")
    owner = tensors.get("sentence_class", torch.empty(0))
    if owner.shape != (len(rows),) or owner.is_floating_point() or not 0 <= int(owner.min()) <= int(owner.max()) < len(names):
        raise UserError(f"{path}: sentence_class must give the class of each of the {len(rows)} sentences, as whole numbers below {len(names)}")
    found = [rows[owner == c] for c in range(len(names))]
    if lacking := [name for name, own in zip(names, found, strict=True) if not len(own)]:
        raise UserError(f"{path}: no sentence is of class {lacking[0]!r}; give each class one, or leave the sentences out")
    return found


def feature_backbone(file: FeatureFile, prototypes: Prototypes, logit_scale: float | None, console: Console) -> FeatureBackbone:
    """The backbone of a run on features and prototypes.

    Args:
        file: The features.
        prototypes: The classes.
        logit_scale: What the user gave; else what a file says; else 100, as CLIP models learn it.
        console: Told which.
    """
    known = next((scale for scale in (logit_scale, prototypes.logit_scale, file.logit_scale) if scale is not None), None)
    if known is None:
        console.say(f"logit scale: {DEFAULT_SCALE:g}, as CLIP models have it, because no file names one; --logit-scale says otherwise")
    elif not 0 < known < float("inf"):
        raise UserError(f"--logit-scale must be above 0 and finite, got {known:g}")
    elif known < LEAST_SCALE:
        console.warn(f"the logit scale is {known:g}: is it the logarithm, as models keep it? Then give --logit-scale {math.exp(known):.4g}")
    for doubt in file.doubts:
        console.warn(doubt)
    bias = file.logit_bias if prototypes.logit_bias is None else prototypes.logit_bias
    return FeatureBackbone(file.dim, known or DEFAULT_SCALE, bias, file.backbone, file.tower, file.store.features.cls.shape[1])


def look_turned(head: Tensor, features: Tensor) -> str | None:
    """What a warning says of square prototypes whose columns are nearer to the features than their rows; None where nothing speaks for that.

    Args:
        head: Unit-norm prototypes (C, D).
        features: Unit-norm features (N, D); the first thousand are looked at.
    """
    if len(head) != head.shape[1] or len(head) < 2:
        return None
    rows = features[:1000].to(head)
    nearest, turned = ((rows @ F.normalize(own, dim=1).T).amax(1).mean().item() for own in (head, head.T))
    if turned <= NEARER * max(nearest, 0):
        return None
    return f"the images are nearer to the columns of the prototypes (cosine {turned:.2g}) than to their rows ({nearest:.2g}): {_TURNED}"


def _columns_of_length_one(rows: Tensor, path: Path) -> tuple[str, ...]:
    """A line about square prototypes (C, C) of which the columns have length 1 and the rows have not."""
    if rows.ndim != 2 or len(rows) != rows.shape[1] or len(rows) < 2:
        return ()
    ones = [bool(((rows.norm(dim=dim) - 1).abs() < UNIT).all()) for dim in (0, 1)]
    return (f"{path}: the columns of the prototypes have length 1 and their rows have not: {_TURNED}",) if ones == [True, False] else ()


def check_width(prototypes: Prototypes, dim: int, what: str) -> None:
    """Refuse prototypes of another width than the features have."""
    if prototypes.dim != dim:
        raise UserError(f"{prototypes.path}: prototypes have {prototypes.dim} columns, {what} {dim}; both must come from the same model")
