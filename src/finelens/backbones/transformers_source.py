"""Find a dual encoder, or an image encoder, in transformers' saved layout, in a folder or on the hub: weights, tokenizer, image processor."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finelens.backbones.hub import hub_errors, offline_if_unreachable
from finelens.core.home import expanded
from finelens.errors import UserError

logger = logging.getLogger(__name__)

SCHEME = "transformers:"
# By model_type of config.json. Fixed-resolution SigLIP 2 has the type siglip.
FAMILIES = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "altclip": "AltCLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "align": "AlignModel",
}
# Image encoders without a text tower, whose pooled output is a feature of the image.
IMAGE_FAMILIES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "dinov3_convnext": "DINOv3ConvNextModel",
}
# Dual encoders whose texts go through a language model, by the architecture that they state: the class of transformers for their image side. The
# code that comes with them is not run, and the geometry that they leave out is CLIP's.
IMAGE_SIDES = {"LLM2CLIPModel": "CLIPVisionModelWithProjection"}
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken"]
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"
OFFLINE_REMEDY = f"use {SCHEME}DIR with config.json, {WEIGHTS}, preprocessor and tokenizer files, or the embedded backbone, which needs no network"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A model as transformers loads it.

    Attributes:
        name: The user's specification, of a hub repository with the commit found.
        family: ``model_type`` of its configuration.
        model: The model, float32, in evaluation mode.
        tokenizer: Its tokenizer; None of an image encoder, and of the image side of a dual encoder.
        processor: Its image processor.
        stated: ``config.json`` as it stands in the file.
        logit_scale: As the weights have it, where the class of transformers does not.
    """

    name: str
    family: str
    model: Any
    tokenizer: Any
    processor: Any
    stated: Mapping[str, Any] = field(default_factory=dict)
    logit_scale: float | None = None

    @property
    def vision_config(self) -> Any:
        """Configuration of the image side."""
        return getattr(self.model.config, "vision_config", self.model.config)


def is_folder(rest: str) -> bool:
    """Whether what follows ``transformers:`` is a folder: one that exists, or what can be no repository's name."""
    return expanded(rest).is_dir() or rest.startswith((".", "/", "~")) or rest.count("/") != 1


def find(rest: str, families: Mapping[str, str] = FAMILIES) -> Source:
    """The model of ``transformers:DIR`` or ``transformers:ORG/REPO[@COMMIT]``. Code from a repository is never run.

    Args:
        rest: What follows the scheme.
        families: Classes of transformers by the ``model_type`` that is accepted.

    Raises:
        UserError: Missing or unreachable files, a kind of model that is not supported, or a local pickle in the place of safetensors.
    """
    if is_folder(rest):
        folder = expanded(rest)
        if not folder.is_dir():
            raise UserError(f"{SCHEME}{rest}: no such folder; give one with config.json and {WEIGHTS}, or ORG/REPO of the hub")
        _refuse_pickles(folder, families)
        return _load(f"{SCHEME}{folder}", folder, families)
    repository, _, revision = rest.partition("@")
    folder = _fetch(repository, revision, families)
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return _load(f"{SCHEME}{repository}" + (f"@{commit}" if commit else ""), folder, families)


def _fetch(repository: str, revision: str, families: Mapping[str, str]) -> Path:
    """Download what is needed of a repository, weights as safetensors if it has them; from one commit, whatever is pushed in between."""
    from huggingface_hub import snapshot_download

    with hub_errors(f"{SCHEME}{repository}", OFFLINE_REMEDY):

        def download(commit: str | None, *patterns: str) -> Path:
            return Path(snapshot_download(repository, revision=commit, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

        folder = download(revision or None, *SMALL_FILES)
        family_of(folder, families)
        commit = folder.name if _COMMIT.fullmatch(folder.name) else revision or None
        folder = download(commit, *SMALL_FILES, "model*.safetensors")
        return folder if _has_safetensors(folder) else download(commit, *SMALL_FILES, "pytorch_model*.bin")


def _has_safetensors(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))


def _has_tokenizer(folder: Path) -> bool:
    """Without these files transformers 5 makes a tokenizer with an empty vocabulary, to which every word is unknown, and says nothing."""
    alone = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")) or any(folder.glob("*.model"))
    return alone or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))


def _refuse_pickles(folder: Path, families: Mapping[str, str]) -> None:
    family_of(folder, families)
    if _has_safetensors(folder):
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder / PICKLE}: pickle checkpoints are refused because they can run code; convert it once: "
            f"safetensors.torch.save_file(torch.load({PICKLE!r}, weights_only=True), {WEIGHTS!r})"
        )
    raise UserError(f"{folder}: no weights; expected {WEIGHTS}")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        UserError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = f"; it has open_clip's layout: use local:{folder}" if (folder / "open_clip_config.json").is_file() else ""
        raise UserError(f"{path}: no such file; a model in transformers' layout has one{hint}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {first_line(error)}") from error
    return config if isinstance(config, dict) else {}


def family_of(folder: Path, families: Mapping[str, str]) -> str:
    """``model_type`` of a folder.

    Raises:
        UserError: No configuration, or not one of the families.
    """
    path = folder / "config.json"
    family = read_config(folder).get("model_type")
    if family == "siglip2":
        raise UserError(
            f"{path}: NaFlex models (model_type siglip2) take a different number of patches for each image, and finelens one square for all; "
            "use a fixed-resolution SigLIP 2 such as google/siglip2-base-patch16-224"
        )
    if family not in families:
        if family in IMAGE_FAMILIES:
            raise UserError(f"{path}: model_type {family!r} has no text tower; give it beside a CLIP model, with --extra-encoder")
        raise UserError(f"{path}: model_type {family!r} is not supported; supported: {', '.join(families)}")
    return str(family)


def _load(name: str, folder: Path, families: Mapping[str, str]) -> Source:
    import transformers

    family = family_of(folder, families)
    stated = read_config(folder)
    side = next((IMAGE_SIDES[one] for one in stated.get("architectures") or () if one in IMAGE_SIDES), None)
    has_text = family in FAMILIES and side is None
    class_name = side or families[family]
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise UserError(f"{name}: transformers {transformers.__version__} has no {class_name}; pip install -U transformers")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{name}: holds an adapter of another model; merge it into that model and save the whole")
    safe = _has_safetensors(folder)
    if not safe:
        logger.warning("%s: %s is a pickle; only its tensors are read (weights_only)", name, PICKLE)
    if has_text and not _has_tokenizer(folder):
        raise UserError(f"{name}: no tokenizer: it needs tokenizer.json, or a vocabulary with its merges; save the tokenizer with the model")
    own = {"local_files_only": True, "trust_remote_code": False}
    with offline_if_unreachable(), quiet():
        try:
            # The attention is named here: a configuration could name code of the hub in its place.
            model, found = model_class.from_pretrained(
                folder, use_safetensors=safe, weights_only=True, local_files_only=True, attn_implementation="eager", output_loading_info=True
            )
        except Exception as error:  # configurations, weights and their libraries raise anything
            raise UserError(f"{name}: the model cannot be loaded: {first_line(error)}") from error
        missing = sorted(found["missing_keys"])
        if missing:
            raise UserError(f"{name}: the weights lack {missing[0]} and {len(missing) - 1} more; give a whole {class_name}")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own) if has_text else None
        except Exception as error:  # tokenizer back ends raise anything from OSError to their own types
            raise UserError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}") from error
        try:
            if side is not None and not (folder / PREPROCESSOR).is_file():
                processor = _clip_processor(model.config.image_size)
            else:
                processor = transformers.AutoImageProcessor.from_pretrained(folder, **own)
        except Exception as error:
            raise UserError(f"{name}: its image processor cannot be loaded: {first_line(error)}") from error
    return Source(name, family, model.float().eval(), tokenizer, processor, stated, None if side is None else _stored_scale(name, folder))


def _clip_processor(side: int) -> Any:
    """CLIP's image processor for pictures of that side."""
    import transformers

    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _stored_scale(name: str, folder: Path) -> float:
    """Multiplier of cosines that lies beside the weights of an image side; 100, the most that CLIP allows, where none does."""
    from safetensors import safe_open

    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if "logit_scale" in file.keys():  # noqa: SIM118
                return float(file.get_tensor("logit_scale").float().exp())
    logger.warning("%s: no logit_scale among the weights; 100 is taken, as CLIP's", name)
    return 100.0


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters of them is checked."""
    import transformers

    says = transformers.utils.logging
    verbosity, bars = says.get_verbosity(), says.is_progress_bar_enabled()
    says.set_verbosity_error()
    says.disable_progress_bar()
    try:
        yield
    finally:
        says.set_verbosity(verbosity)
        if bars:
            says.enable_progress_bar()
