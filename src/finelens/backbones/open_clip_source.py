"""Find an open_clip model: its configuration, its weights and its tokenizer, from a pretrained tag, a hub repository or a folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError, safe_open
from torch import nn

from finelens.backbones.hub import hub_errors, offline_if_unreachable
from finelens.errors import UserError

logger = logging.getLogger(__name__)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMMIT = re.compile("[0-9a-f]{40}")
QUICK_GELU_SUFFIX = "-quickgelu"
OFFLINE_REMEDY = "use local:DIR with open_clip_config.json and open_clip_model.safetensors, or the embedded backbone, which needs no network"


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is built.

    Attributes:
        name: The user's specification.
        model: open_clip's model configuration, activation settled.
        preprocess: open_clip's preprocessing settings; absent keys keep open_clip's defaults.
        weights: Checkpoint file.
        tokenizer: Name that ``open_clip.get_tokenizer`` understands.
    """

    name: str
    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    tokenizer: str


def find_tagged(name: str, tag: str) -> Source:
    """Model ``open_clip:NAME/TAG``, weights from open_clip's download cache or a hub.

    Raises:
        UserError: Unknown name or tag (the message gives the nearest), or no hub reachable.
    """
    spec = f"open_clip:{name}/{tag}"
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise UserError(f"{spec}: open_clip has no model {name!r}{_nearest(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not open_clip.is_pretrained_cfg(name, tag):
        raise UserError(f"{spec}: model {name!r} has no pretrained tag {tag!r}{_nearest(tag, tags)}; its tags: {', '.join(tags) or 'none'}")
    tag_config = open_clip.get_pretrained_cfg(name, tag)
    config["quick_gelu"] = settle_activation(spec, bool(config.get("quick_gelu")), tag_config.get("quick_gelu"))
    with hub_errors(spec, OFFLINE_REMEDY):
        weights = Path(open_clip.download_pretrained(tag_config))
    return Source(spec, config, dict(tag_config), weights, name)


def find_on_hub(repository: str) -> Source:
    """Model ``hf-hub:ORG/REPO[@REVISION]`` with open_clip's files. The source is named by the commit found, so that it can be loaded again.

    Raises:
        UserError: Not reachable, or not an open_clip model.
    """
    repository, _, revision = repository.partition("@")
    spec = f"hf-hub:{repository}" + (f"@{revision}" if revision else "")
    with hub_errors(spec, OFFLINE_REMEDY):
        found = Path(download_pretrained_from_hf(repository, filename=CONFIG_NAME, revision=revision or None))
        config = _read_config(found)
        # Configuration and weights of one commit, whatever is pushed in between.
        commit = found.parent.name if _COMMIT.fullmatch(found.parent.name) else revision
        weights = Path(download_pretrained_from_hf(repository, revision=commit or None))
    spec = f"hf-hub:{repository}" + (f"@{commit}" if commit else "")
    model = config["model_cfg"]
    model["quick_gelu"] = settle_activation(spec, bool(model.get("quick_gelu")), _registered_activation(repository))
    return Source(spec, model, config.get("preprocess_cfg", {}), weights, f"hf-hub:{repository}")


def find_local(folder: Path) -> Source:
    """Model ``local:DIR`` in open_clip's saved layout.

    Raises:
        UserError: Missing or contradictory files, or a pickle instead of safetensors.
    """
    if not folder.is_dir():
        raise UserError(f"local:{folder}: no such folder; give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAMES[0]}")
    config = _read_config(folder / CONFIG_NAME)
    return Source(f"local:{folder}", config["model_cfg"], config.get("preprocess_cfg", {}), _local_weights(folder), f"local-dir:{folder}")


def settle_activation(spec: str, configured: bool, registered: bool | None) -> bool:
    """QuickGELU belongs to the weights: where the architecture and the weights' registry disagree, the registry wins, and a warning says so.

    Args:
        spec: The user's specification, for the message.
        configured: What the architecture's configuration says.
        registered: What is registered with the weights; None if nothing is.
    """
    if registered is None:
        if configured:
            logger.warning("%s: the architecture uses QuickGELU and nothing is registered with the weights; QuickGELU is kept", spec)
        return configured
    if registered != configured:
        used, other = ("QuickGELU", "GELU") if registered else ("GELU", "QuickGELU")
        logger.warning("%s: these weights were trained with %s, the named architecture has %s; corrected to %s", spec, used, other, used)
    return registered


def build(source: Source) -> tuple[Any, Any]:
    """Build the open_clip model with its weights, and its tokenizer.

    A pickle checkpoint, which only hubs can lead to, goes through ``torch.load(weights_only=True)``.

    Raises:
        UserError: Configuration, weights or tokenizer that cannot be used.
    """
    with _hub_for_text(source):
        model = _build_model(source)
    if source.weights.suffix in PICKLE_SUFFIXES:
        logger.warning("%s: %s is a pickle; only its tensors are read (weights_only)", source.name, source.weights.name)
    try:
        _check_positions(source, model)
        with _root_logger_kept():
            open_clip.load_checkpoint(model, str(source.weights), weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, KeyError, OSError) as error:
        raise UserError(f"{source.name}: cannot load {source.weights}: {_first_line(error)}") from error
    try:
        with _root_logger_kept(), _hub_for_text(source):
            tokenizer = open_clip.get_tokenizer(source.tokenizer)
    except ImportError as error:
        raise UserError(f"{source.name}: its tokenizer needs a missing package ({_first_line(error)}); pip install transformers") from error
    except Exception as error:  # tokenizer back ends raise anything from OSError to their own types
        raise UserError(f"{source.name}: cannot load its tokenizer: {_first_line(error)}; {OFFLINE_REMEDY}") from error
    return model, tokenizer


def _check_positions(source: Source, model: nn.Module) -> None:
    """open_clip resizes a table of positions that does not fit the configuration, in silence, and the model is another one then.

    Raises:
        UserError: The text side's table does not fit. That of the image side is warned of: larger pictures by interpolated positions are in use.
    """
    if source.weights.suffix in PICKLE_SUFFIXES:
        return
    with safe_open(source.weights, framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith("positional_embedding")}  # noqa: SIM118
    wanted = {name: len(table) for name, table in model.named_parameters() if name.endswith("positional_embedding")}
    # A text tower may stand in the weights with or without its prefix.
    for name, count in wanted.items():
        found = stored.get(name, stored.get(name.removeprefix("text."), count))
        if found == count:
            continue
        if name.startswith("visual."):
            logger.warning("%s: image positions for %d tokens are interpolated from the %d of the weights", source.name, count, found)
            continue
        raise UserError(
            f"{source.name}: text_cfg.context_length is {count} and {source.weights.name} holds positions for {found} tokens; "
            f"set context_length to {found} in {CONFIG_NAME}, as the weights were trained"
        )


def _hub_for_text(source: Source) -> AbstractContextManager[None]:
    """Text towers and tokenizers from another library may reach for the hub; CLIP's own ship with open_clip."""
    foreign = {"hf_model_name", "hf_tokenizer_name"} & source.model["text_cfg"].keys()
    return offline_if_unreachable() if foreign else nullcontext()


def refuse_kind(name: str, model: Mapping[str, Any]) -> None:
    """Refuse kinds of models that open_clip has beside dual encoders of images and texts, by their configuration.

    Raises:
        UserError: One of them; the message says what it is.
    """
    text, vision = model.get("text_cfg", {}), model.get("vision_cfg")
    if vision is None or "genlip_cfg" in model or "genlap_cfg" in model:
        raise UserError(f"{name}: a model for audio or captions, without a pair of image and text towers; use a CLIP model")
    if "multimodal_cfg" in model:
        raise UserError(f"{name}: CoCa models pool by attention and are not supported; use a CLIP model")
    if str(vision.get("timm_model_name")).startswith("naflexvit"):
        raise UserError(
            f"{name}: NaFlex models take a different number of patches for each image, and finelens one square for all; use one of a fixed resolution"
        )
    if text.get("text_arch", "clip") != "clip":
        raise UserError(f"{name}: text_cfg.text_arch {text['text_arch']!r} is not supported; use a model with CLIP's text tower or one of the hub")


def _build_model(source: Source) -> nn.Module:
    refuse_kind(source.name, source.model)
    arguments = deepcopy(source.model)
    arguments["vision_cfg"]["timm_model_pretrained"] = False
    text = arguments["text_cfg"]
    has_foreign_text = "hf_model_name" in text
    if has_foreign_text:
        text["hf_model_pretrained"] = False
    custom_text = arguments.pop("custom_text", False) or has_foreign_text
    try:
        return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
    except Exception as error:  # unknown keys, unknown timm names, unreachable text configurations: all end here
        raise UserError(f"{source.name}: its model configuration cannot be built: {_first_line(error)}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a local model needs {CONFIG_NAME} with model_cfg and preprocess_cfg beside its weights") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {_first_line(error)}") from error
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")) or "embed_dim" not in model:
        raise UserError(f"{path}: model_cfg with embed_dim, vision_cfg and text_cfg is missing; save the model with open_clip's own layout")
    _refuse_contradiction(path, config)
    return config


def _refuse_contradiction(path: Path, config: Mapping[str, Any]) -> None:
    model, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
    stated = {"model_cfg.quick_gelu": bool(model.get("quick_gelu", False))}
    stated |= {
        f"{where}quick_gelu": bool(part["quick_gelu"]) for where, part in (("", config), ("preprocess_cfg.", preprocess)) if "quick_gelu" in part
    }
    named = [key for key in ("model_name", "architecture", "name") if str(config.get(key, "")).endswith(QUICK_GELU_SUFFIX)]
    stated |= {f"{key}={config[key]}": True for key in named}
    if len(set(stated.values())) > 1:
        says = ", ".join(f"{key}: {value}" for key, value in stated.items())
        raise UserError(f"{path}: contradictory activation ({says}); set model_cfg.quick_gelu to what the weights were trained with")


def _local_weights(folder: Path) -> Path:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: pickle checkpoints are refused because they can run code; convert it once: "
            f"safetensors.torch.save_file(torch.load({pickles[0]!r}, weights_only=True), {WEIGHTS_NAMES[0]!r})"
        )
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHTS_NAMES)}")


def _registered_activation(repository: str) -> bool | None:
    """What open_clip's registry says about a hub repository that it also knows under a tag."""
    for name, tag in open_clip.list_pretrained():
        registered = open_clip.get_pretrained_cfg(name, tag)
        if registered.get("hf_hub", "").rstrip("/") == repository:
            return registered.get("quick_gelu")
    return None


def _nearest(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(near)}" if near else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """open_clip logs through the root logger, which installs a handler there as a side effect; take it away again."""
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
