"""An adapted classifier: in memory, and as a folder of safetensors and JSON that needs neither network nor text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finelens.backbones.registry import rebuild_image_tower
from finelens.classes.heads import ClassHeads
from finelens.core.options import from_mapping, to_plain
from finelens.core.schemas import MODEL_CONFIG_FILE, MODEL_WEIGHTS_FILE, SCHEMA_VERSION, VERSION, ZERO_SHOT_WEIGHTS_FILE
from finelens.engine.device import choose_device, choose_precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.familiarity import Familiarity
from finelens.evaluation.none_of_these import NoneOfThese, text_likeness, with_neighbours
from finelens.feature_store.extra_towers import ExtraEncoder
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.registry import Method, find_method
from finelens.protocol import Backbone, FeatureRows, Task
from finelens.storage.files import file_digest, read_json, write_json
from finelens.storage.tensors import load_tensors, save_tensors
from finelens.training.config import TrainingConfig

FORMAT = "finelens-model"
# The branch that is the answer, of those that a task gives.
ANSWER = "logits"


@dataclass
class Model:
    """A classifier and the unadapted model it came from.

    Attributes:
        engine: Runs the (adapted) backbone.
        task: The method's heads and projections.
        class_names: C names.
        method: Name of the method.
        method_options: Its options, an instance of its dataclass.
        training: Optimisation settings; the scope says which tensors were adapted.
        zero_shot_heads: Text heads (C, E) of the unadapted model: ``templates`` and ``descriptions``.
        base: Values that the adapted tensors of the backbone had before, by name; empty where nothing was adapted.
        temperature: What the logits of the answer are divided by, see ``finelens.evaluation.calibration``; 1 leaves them.
        extra: Further encoders whose features the method looks at, in the order of ``--extra``.
        familiarity: What the photographs of the fit look like; None of too few, and in models of before.
        none_of_these: From which likeness on a photograph probably belongs to no class; None in models of before.
    """

    engine: Engine
    task: Task
    class_names: tuple[str, ...]
    method: str
    method_options: Any
    training: TrainingConfig
    zero_shot_heads: dict[str, Tensor]
    base: dict[str, Tensor]
    temperature: float = 1.0
    extra: tuple[ExtraEncoder, ...] = ()
    familiarity: Familiarity | None = None
    none_of_these: NoneOfThese | None = None

    @property
    def entry(self) -> Method:
        """The method as the registry knows it."""
        return find_method(self.method)

    def logits(self, images: Tensor, views: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (B, C) by branch of uint8 centre views (B, 3, S, S) and, for a method that asks for them, further views (B, M, 3, S, S).

        The answer, ``logits``, is divided by the temperature; its parts are as the method gives them.
        """
        found = self._found(images, views)
        return {name: self.calibrated(value.float().cpu()) if name == ANSWER else value.float().cpu() for name, value in found.items()}

    def _found(self, images: Tensor, views: Tensor | None) -> dict[str, Tensor]:
        if self.task.asks_unadapted:
            with self.unadapted(), torch.no_grad():
                tokens = self.engine.encode_frozen(images)
            # Rows, since what was fitted to the images of the run applies to them, and to no pixels of an unadapted tower.
            return self.task.predict_beside(images, torch.cat([tokens.global_, tokens.cls], 1).as_subclass(FeatureRows))
        return self.task.predict_logits(images) if views is None else self.task.predict_from_views(images, views)

    def calibrated(self, logits: Tensor) -> Tensor:
        """The method's logits (N, C) divided by the temperature."""
        return logits if self.temperature == 1.0 else logits / self.temperature

    @torch.no_grad()
    def zero_shot_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) of the unadapted model with each text head."""
        with self.unadapted():
            features = self.engine.encode_frozen(images).global_
        return {name: cosine_logits(self.engine, features, head).float().cpu() for name, head in self.zero_shot_heads.items()}

    @torch.no_grad()
    def seen_before(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Likeness (N,) of photographs to those of the fit, and doubt (N,) whether they belong to any class; empty where the model does not know.

        Args:
            features: Unit norm, by the unadapted model, (N, E).
        """
        # As the fit keeps them: a photograph that took part in it is told the same again.
        features = features.cpu().half()
        near, likeness, doubt = None, torch.zeros(0), torch.zeros(0)
        if self.familiarity is not None:
            cosines, near = self.familiarity.nearest(features)
            likeness = cosines.mean(1)
        if self.none_of_these is not None:
            bank, heads = None if self.familiarity is None else self.familiarity.bank, list(self.zero_shot_heads.values())
            doubt = self.none_of_these.doubt(torch.cat([text_likeness(part, heads) for part in with_neighbours(features, bank, near)]))
        return likeness, doubt

    @contextmanager
    def unadapted(self) -> Iterator[None]:
        """Context in which the backbone is as it was before the adaptation."""
        current = adapted_tensors(self.engine.backbone, self.training.scope) if self.base else {}
        kept = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            copy_into(current, self.base)
            yield
        finally:
            copy_into(current, kept)


def adapted_tensors(backbone: Backbone, scope: str) -> dict[str, Tensor]:
    """The backbone's tensors that adaptation changes: tuned weights and fitted statistics."""
    return {**backbone.adapted(scope), **{f"fitted.{name}": tensor for name, tensor in backbone.fitted_state().items()}}


@torch.no_grad()
def copy_into(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy values into the tensors of the same name."""
    for name, tensor in targets.items():
        tensor.copy_(values[name])


@dataclass(frozen=True)
class PackedModel:
    """A model as JSON and tensors: what its folder holds, and what travels to another process.

    Attributes:
        document: ``model.json`` without the digests of the other files.
        tensors: ``model.safetensors``.
        zero_shot: ``zero_shot.safetensors``.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    zero_shot: dict[str, Tensor]


def pack_model(model: Model) -> PackedModel:
    """JSON and tensors of a model; the tensors share memory with it."""
    backbone = model.engine.backbone
    tensors = {f"backbone.{k}": v for k, v in backbone.image_state().items()} | {f"task.{k}": v for k, v in model.task.prediction_state().items()}
    unadapted = {f"head.{k}": v for k, v in model.zero_shot_heads.items()} | {f"base.{k}": v for k, v in model.base.items()}
    if model.familiarity is not None:
        unadapted |= {"seen.bank": model.familiarity.bank, "seen.levels": model.familiarity.levels}
    if model.none_of_these is not None:
        unadapted["none.level"] = torch.tensor([model.none_of_these.level, model.none_of_these.spread], dtype=torch.float64)
    document = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "finelens_version": VERSION,
        "method": model.method,
        "method_options": to_plain(model.method_options),
        "training": to_plain(model.training),
        "class_names": list(model.class_names),
        "temperature": model.temperature,
        "backbone": backbone.image_config(),
        "extra": [to_plain(encoder) for encoder in model.extra],
    }
    return PackedModel(document, tensors, unadapted)


def save_model(folder: Path, model: Model) -> None:
    """Write ``model.json``, ``model.safetensors`` and ``zero_shot.safetensors``; each file atomically, the JSON last."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = pack_model(model)
    save_tensors(folder / MODEL_WEIGHTS_FILE, packed.tensors)
    save_tensors(folder / ZERO_SHOT_WEIGHTS_FILE, packed.zero_shot)
    digests = {name: file_digest(folder / name) for name in (MODEL_WEIGHTS_FILE, ZERO_SHOT_WEIGHTS_FILE)}
    write_json(folder / MODEL_CONFIG_FILE, {**packed.document, "sha256": digests})


def load_model(folder: Path, *, device: str = "cpu") -> Model:
    """Read a model folder.

    Args:
        folder: ``model/`` of a run.
        device: Where to run it.

    Raises:
        UserError: Not a model folder, damaged, or written by a newer finelens.
    """
    path = folder / MODEL_CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run is not finished (finelens resume) or {folder} is not the model of a run")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path}: not the description of a finelens model; choose the folder of a run")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: schema_version {version!r} is not a version; the file was edited or damaged, run finelens adapt again")
    if version > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer finelens ({document.get('finelens_version')}); upgrade finelens")
    try:
        packed = PackedModel(document, load_tensors(folder / MODEL_WEIGHTS_FILE), load_tensors(folder / ZERO_SHOT_WEIGHTS_FILE))
        # Models of before have none.
        _check_digests(folder, document.get("sha256", {}))
        return unpack_model(packed, device=device)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{folder}: the model's files do not fit together ({error}); run finelens adapt again") from error


def _check_digests(folder: Path, digests: dict[str, str]) -> None:
    for name, digest in digests.items():
        if name in (MODEL_WEIGHTS_FILE, ZERO_SHOT_WEIGHTS_FILE) and file_digest(folder / name) != digest:
            raise UserError(f"{folder / name} is not the file that {MODEL_CONFIG_FILE} names (SHA-256 differs); restore it or adapt again")


def unpack_model(packed: PackedModel, *, device: str = "cpu", precision: str | None = None) -> Model:
    """The model of its JSON and tensors, which are copied; arguments as for :func:`load_model`."""
    document, tensors, zero_shot = packed.document, packed.tensors, packed.zero_shot
    training = from_mapping(TrainingConfig, document["training"], "training")
    backbone = rebuild_image_tower(document["backbone"], strip_prefix(tensors, "backbone."))
    place = choose_device(device)
    engine = Engine(backbone, place, choose_precision(precision or training.precision, place))
    method = find_method(document["method"])
    options: Any = method.options_of_file(document["method_options"])
    heads = {name: head.to(place) for name, head in strip_prefix(zero_shot, "head.").items()}
    names = tuple(document["class_names"])
    # The heads only give the shapes here; what was learned is loaded over them. Nothing trains any more, so no scope is in use.
    shapes = ClassHeads(heads["templates"], heads["descriptions"], heads["descriptions"])
    task = method.build(engine, shapes, options, replace(training, scope="none", cached_prefix=0), 0)
    missing = task.load_state_dict(strip_prefix(tensors, "task."), strict=False).missing_keys
    lost = set(missing) & set(task.prediction_state())
    if lost or len(heads["templates"]) != len(names):
        raise KeyError(", ".join(sorted(lost)) or "class_names")
    base = {name: tensor.to(place) for name, tensor in strip_prefix(zero_shot, "base.").items()}
    if method.adapts and base.keys() != adapted_tensors(backbone, training.scope).keys():
        raise KeyError("base")
    temperature = float(document.get("temperature", 1.0))
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}")
    extra = tuple(from_mapping(ExtraEncoder, own, "extra") for own in document.get("extra", []))
    seen = strip_prefix(zero_shot, "seen.")
    familiarity = Familiarity(seen["bank"], seen["levels"]) if seen else None
    level = zero_shot.get("none.level")
    none_of_these = None if level is None else NoneOfThese(*level.tolist())
    return Model(engine, task, names, method.name, options, training, heads, base, temperature, extra, familiarity, none_of_these)


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
