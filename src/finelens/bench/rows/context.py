"""A data set with a backbone: loaded once, shared by every row about it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from finelens.backbones.registry import load_backbone
from finelens.bench.rows.features import MixedPool, Pool
from finelens.bench.sets.data import DataSet
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import ClassHeads, build_heads
from finelens.classes.made_up import name_texts
from finelens.core.console import Console
from finelens.core.options import to_plain
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.engine import Engine
from finelens.engine.flops import tower_flops
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.load import decode_limits
from finelens.protocol import Backbone, ClassSet
from finelens.runs.config import RunConfig
from finelens.runs.prepare import Prepared, assemble
from finelens.runs.resolve import make_config
from finelens.storage.cache import cached_tensors, state_digest

PHOTOS = "(benchmark)"
_PROBE = ("a photo of a cat.", "an aerial view of a river in a desert", "x")
# What ClassHeads holds: one tensor each, and one tensor per class each.
_HEADS = ("templates", "descriptions", "weighted")
_PER_CLASS = ("sentences", "texts")


class TextMemory:
    """Text features by text.

    Args:
        encode: ``Backbone.encode_text``.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]) -> None:
        self._encode = encode
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features (T, E)."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, self._encode(new), strict=True))
        return torch.stack([self._known[text] for text in texts])


class Start:
    """The unadapted backbone that all rows begin with.

    Args:
        spec: As for ``--backbone``.
        device: Where it runs.
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """

    def __init__(self, spec: str, device: str = "cpu", precision: str = "auto") -> None:
        self.spec, self.device = spec, choose_device(device)
        self.backbone: Backbone = load_backbone(spec)
        self.precision = choose_precision(precision, self.device)
        self.engine = Engine(self.backbone, self.device, self.precision)
        # The text tower may hold its weights anywhere; what it makes of a few texts tells it from any other.
        self.texts = state_digest({"probe": self.backbone.encode_text(_PROBE)})

    def fresh_engine(self) -> Engine:
        """An engine around a copy that a method may change."""
        with self._forgetful():
            return Engine(copy.deepcopy(self.backbone), self.device, self.precision)

    def remember_texts(self) -> None:
        """Encode a text once from now on, for methods that write prompts of their own; what was remembered before is forgotten."""
        vars(self.backbone).pop("encode_text", None)
        vars(self.backbone)["encode_text"] = TextMemory(self.backbone.encode_text)

    @contextmanager
    def _forgetful(self) -> Iterator[None]:
        """A method that trains may change the text tower."""
        memory = vars(self.backbone).pop("encode_text", None)
        try:
            yield
        finally:
            if memory is not None:
                vars(self.backbone)["encode_text"] = memory

    def heads(self, classes: ClassSet) -> ClassHeads:
        """Text heads, from the cache if these texts were encoded before."""

        def encode() -> dict[str, Tensor]:
            heads = build_heads(self.backbone, classes)
            counts = {f"{name}_counts": torch.tensor([len(own) for own in getattr(heads, name)]) for name in _PER_CLASS}
            return {name: getattr(heads, name) for name in _HEADS} | {name: torch.cat(getattr(heads, name)) for name in _PER_CLASS} | counts

        stored = cached_tensors(["benchmark heads and texts", self.texts, json.dumps(to_plain(classes))], encode)
        stored = {name: tensor.to(self.device) for name, tensor in stored.items()}
        held: dict[str, Any] = {name: stored[name] for name in _HEADS}
        held |= {name: tuple(stored[name].split(stored[f"{name}_counts"].tolist())) for name in _PER_CLASS}
        return ClassHeads(**held, classes=classes)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one image without gradient, counted."""
        return tower_flops(Engine(self.backbone, self.device, self.precision)).forward


class Context:
    """A data set and a backbone.

    Args:
        data: The data set.
        start: The backbone.
        console: Progress.
    """

    def __init__(self, data: DataSet, start: Start, console: Console) -> None:
        self.data, self.start, self.console, self.quiet = data, start, console, Console(enabled=False)
        limits = decode_limits(self.config("zero-shot", 0, {}).views, start.backbone.preprocess)
        encoder = FeatureEncoder(start.engine, limits.short_side)
        self.train, self.test = Pool(data.train, encoder, limits, console), Pool(data.test, encoder, limits, console)
        start.remember_texts()
        self._texts: dict[tuple[str, ...], tuple[ClassSet, Any, ClassHeads]] = {}

    def config(self, method: str, seed: int, options: dict[str, dict[str, Any]]) -> RunConfig:
        """Configuration of a row."""
        return make_config("adapt", PHOTOS, method, options, backbone=self.start.spec, seed=seed, device=str(self.start.device))

    def prepared(self, config: RunConfig, names: Sequence[str], engine: Engine, *, named: bool = False) -> Prepared:
        """What :func:`finelens.runs.prepare.prepare` makes, with texts that were encoded before and the engine given.

        Args:
            config: The row's configuration.
            names: Class names.
            engine: Runs the backbone.
            named: Whether words that mean nothing are put beside the names, for the level of "none of these".
        """
        classes, report, _ = self._texts_of(tuple(names))
        texts = name_texts(self.start.backbone, classes) if named else None
        return replace(assemble(config, engine, self.heads(names), classes, report), name_texts=texts)

    def _texts_of(self, names: tuple[str, ...]) -> tuple[ClassSet, Any, ClassHeads]:
        if names not in self._texts:
            backbone = self.start.backbone
            classes, report, _ = build_class_set(
                names,
                self.data.descriptions,
                self.data.templates,
                count_tokens=backbone.count_tokens,
                context_length=backbone.context_length,
            )
            self._texts[names] = classes, report, self._encode(classes)
        return self._texts[names]

    def heads(self, names: Sequence[str]) -> ClassHeads:
        """Text heads of some class names, for this method alone."""
        heads = self._texts_of(tuple(names))[2]
        # A method may keep and change what it is given.
        own: dict[str, Any] = {name: getattr(heads, name).clone() for name in _HEADS}
        return replace(heads, **own | {name: tuple(part.clone() for part in getattr(heads, name)) for name in _PER_CLASS})

    def _encode(self, classes: ClassSet) -> ClassHeads:
        """Heads of a class set; those of the set's own classes are shared by all class sets that add names to them."""
        own = len(self.data.class_names)
        if len(classes) <= own:
            return self.start.heads(classes)
        first = self.start.heads(ClassSet(classes.names[:own], classes.templates, classes.descriptions[:own]))
        more = self.start.heads(ClassSet(classes.names[own:], classes.templates, classes.descriptions[own:]))
        joined: dict[str, Any] = {name: torch.cat([getattr(first, name), getattr(more, name)]) for name in _HEADS}
        joined |= {name: getattr(first, name) + getattr(more, name) for name in _PER_CLASS}
        return ClassHeads(**joined, classes=classes)

    def pool(self, part: str) -> Pool:
        """``train`` or ``test``."""
        return self.train if part == "train" else self.test

    def mixed_with(self, other: Context) -> Context:
        """The same classes, and images of both sets; those of the other belong to no class."""
        both = copy.copy(self)
        both.train, both.test = MixedPool(self.train, other.train), MixedPool(self.test, other.test)
        checksum = hashlib.sha256(f"{self.source['checksum']} with {other.source['checksum']}".encode()).hexdigest()
        vars(both)["source"] = {**self.source, "checksum": checksum, "other": other.data.name}
        return both

    @cached_property
    def source(self) -> dict[str, Any]:
        """Identity of the data: what a result says about it."""
        total = hashlib.sha256(self.data.texts_digest().encode())
        for pool in (self.train, self.test):
            labels = pool.part.labels.read().tolist()
            total.update("\n".join(sorted(f"{digest} {label}" for digest, label in zip(pool.digests, labels, strict=True))).encode() + b";")
        return {
            "checksum": total.hexdigest(),
            "train": len(self.train.digests),
            "test": len(self.test.digests),
            "classes": len(self.data.class_names),
            "layout": self.data.layout,
            "split": self.data.split,
        } | ({"left_out": list(self.data.left_out)} if self.data.left_out else {})
