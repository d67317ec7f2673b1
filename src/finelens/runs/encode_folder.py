"""``finelens features --out NAME.features``: shards of a folder, each on the disk before the next is begun."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from finelens.backbones.registry import absolute_spec, load_backbone
from finelens.classes.heads import ClassHeads
from finelens.classes.taxonomy import read_class_list
from finelens.core.console import Console
from finelens.core.phases import Phases
from finelens.core.schemas import SCHEMA_VERSION, VERSION
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder, tower_digest
from finelens.feature_store.files import FORMAT
from finelens.feature_store.folder import SHARD, FolderWriter
from finelens.images.decode import DecodeLimits
from finelens.images.load import Tally, decode_limits, say_remarks
from finelens.images.store import ImageItems
from finelens.protocol import Backbone, ImageRecord
from finelens.runs.config import RunConfig
from finelens.runs.photo_source import PhotoSource
from finelens.runs.predict import GROUP, read_group
from finelens.runs.prepare import prepare
from finelens.runs.sources import asked_at


class FolderEncoder:
    """Model and photographs of a folder of shards, loaded.

    Args:
        photos: Photographs.
        backbone: Specification of the model.
        device: ``cpu``, ``cuda`` or ``mps``.
        classes: File of class names, for their prototypes.
        descriptions: JSON file of sentences about them.
        console: What is said.

    Attributes:
        engine: The model.
        listing: Names of the photographs.
        metadata: Texts of every shard.
        key: Everything that decides the content.

    Raises:
        UserError: Input that cannot be used.
    """

    def __init__(
        self, photos: str | Path, backbone: str, device: str, classes: str | Path | None, descriptions: str | Path | None, console: Console
    ) -> None:
        source = photographs_at(photos)
        self.listing, self._inputs = source.listing(), source.inputs
        config = RunConfig("zero-shot", str(photos), method="zero-shot", backbone=backbone, device=device)
        self.engine, self._heads, names = open_engine(config, classes, descriptions, console)
        self._limits = decode_limits(config.views, self.engine.backbone.preprocess)
        self._encoder = FeatureEncoder(self.engine, self._limits.short_side)
        self.metadata = metadata_of(self.engine, backbone) | ({} if self._heads is None else {"classes": json.dumps(names)})
        key = json.dumps([self._encoder.key, self.metadata, asdict(self.listing), SHARD])
        self.key = hashlib.sha256(key.encode()).hexdigest()

    @cached_property
    def texts(self) -> dict[str, Tensor] | None:
        """Prototypes and sentences; None without classes."""
        return None if self._heads is None else text_tensors(self._heads)

    def say_remarks(self, console: Console) -> None:
        """Say what was seen when the photographs were listed."""
        say_remarks(self._inputs, console)

    def shard(self, number: int, phases: Phases) -> tuple[list[ImageRecord], dict[str, Tensor]]:
        """Records of the files of shard ``number``, from 0, and the features of those that can be read, in their order."""
        start = number * SHARD
        within = range(start, min(start + SHARD, self.listing.count))
        return _encoded(self._encoder, self._inputs, within, self._limits, phases)


def photographs_at(photos: str | Path) -> PhotoSource:
    """Photographs that features can be made of.

    Raises:
        UserError: There are none.
    """
    source = asked_at(photos)
    if not isinstance(source, PhotoSource):
        raise UserError(f"{photos} holds features already; give photographs")
    return source


def shard_count(files: int) -> int:
    """Shards of so many photographs."""
    return -(-files // SHARD)


def encode_folder(
    out: Path, photos: str | Path, backbone: str, device: str, classes: str | Path | None, descriptions: str | Path | None, console: Console
) -> None:
    """Encode shard by shard."""
    work = FolderEncoder(photos, backbone, device, classes, descriptions, console)
    work.say_remarks(console)
    tally, total = Tally(), work.listing.count
    with FolderWriter(out, work.metadata, work.key) as writer:
        if writer.done:
            console.say(f"going on: {writer.done} of {total} files are in {out}")
        with console.progress(total - writer.done, "encode images") as bar:
            phases = Phases(bar)
            for number in range(len(writer.entries), shard_count(total)):
                records, columns = work.shard(number, phases)
                tally.add(records)
                writer.add(records, columns)
        writer.finish(work.texts)
    tally.say(console)
    tally.say_notes(console)
    console.say(f"{work.engine.no_grad_forwards} views encoded now, the others came from the cache; wrote {out}")


def _encoded(
    encoder: FeatureEncoder, inputs: ImageItems, within: range, limits: DecodeLimits, phases: Phases
) -> tuple[list[ImageRecord], dict[str, Tensor]]:
    """Records of some inputs, and the features of those that can be read, in their order."""
    backbone = encoder.engine.backbone
    records: list[ImageRecord] = []
    parts = {"global": [torch.zeros(0, backbone.dim)], "cls": [torch.zeros(0, backbone.width)]}
    for start in range(within.start, within.stop, GROUP):
        part = range(start, min(start + GROUP, within.stop))
        with phases.group(len(part)):
            loaded = read_group([inputs[i] for i in part], limits, phases)
            order = [record.index for record in loaded.records if record.index is not None]
            found = encoder.centre(loaded.store, phases.console, "encode") if order else None
        records += loaded.records
        if found is not None:
            parts["global"].append(found.global_[order].cpu())
            parts["cls"].append(found.cls[order].cpu())
    return records, {name: torch.cat(own) for name, own in parts.items()}


def open_engine(
    config: RunConfig, classes: str | Path | None, descriptions: str | Path | None, console: Console
) -> tuple[Engine, ClassHeads | None, list[str]]:
    """The model of a configuration; with classes also their prototypes and names."""
    if classes is not None:
        names, taxonomy = read_class_list(classes)
        prepared = prepare(config, names, None if descriptions is None else Path(descriptions), console, taxonomy=taxonomy)
        return prepared.engine, prepared.heads, names
    place = choose_device(config.device)
    backbone = load_backbone(config.backbone)
    precision = choose_precision(config.training.precision, place)
    console.say(f"backbone: {config.backbone}; precision: {precision.reason}")
    return Engine(backbone, place, precision), None, []


def metadata_of(engine: Engine, spec: str) -> dict[str, str]:
    """Texts of a feature file: what its features are of."""
    backbone: Backbone = engine.backbone
    return {
        "format": FORMAT,
        "schema_version": str(SCHEMA_VERSION),
        "finelens_version": VERSION,
        "backbone": absolute_spec(spec),
        "tower": tower_digest(backbone),
        "preprocess": json.dumps(asdict(backbone.preprocess)),
        "precision": engine.precision.name,
        "logit_scale": repr(float(backbone.logit_scale)),
        "logit_bias": repr(float(backbone.logit_bias)),
    }


def text_tensors(heads: ClassHeads) -> dict[str, Tensor]:
    """Prototypes (C, E), and sentences (S, E) with the class of each (S,), as a feature file holds them."""
    owner = torch.cat([torch.full((len(features),), c, dtype=torch.int64) for c, features in enumerate(heads.sentences)])
    sentences = torch.cat([features.cpu() for features in heads.sentences])
    return {
        "prototypes": heads.templates.float(),
        "descriptions": heads.descriptions.float(),
        "sentences": sentences.float(),
        "sentence_class": owner,
    }
