"""A small world for the tests that cross modules: 24 separable pictures in four classes, tiny backbones, quiet runs of seconds."""

from __future__ import annotations

import atexit
import copy
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from finelens.core.console import Console
from finelens.images.load import decode_limits, load
from finelens.methods.registry import METHODS, find_method
from finelens.protocol import Hints
from finelens.runs.fit import Fitted, fit
from finelens.runs.prepare import Prepared, prepare
from finelens.runs.resolve import make_config
from finelens.training.loop import Hooks

CLASSES = ("red stripe", "green check", "blue disc", "yellow ramp")
WITH_SUPPORT = ("sus-x", "caps-adapter")
TRAINING = tuple(method.name for method in METHODS if method.trains)
# Without those that learn on the text side only and leave the image tower as it is.
TUNING = tuple(name for name in TRAINING if find_method(name).training_defaults.get("scope") != "none")
ALL = tuple(method.name for method in METHODS)
QUIET = Console(enabled=False)
_COLOURS = np.array([(220, 40, 40), (40, 190, 60), (40, 60, 220), (230, 210, 40)])


def shared_tokenizer() -> Callable[..., None]:
    """A constructor for ``SimpleTokenizer`` that unpacks each vocabulary once."""
    build = SimpleTokenizer.__init__
    built: dict[str, SimpleTokenizer] = {}

    def share(self: SimpleTokenizer, *args: Any, **kwargs: Any) -> None:
        key = repr((args, sorted(kwargs.items())))
        if key not in built:
            build(self, *args, **kwargs)
            built[key] = copy.copy(self)
        self.__dict__.update(built[key].__dict__)

    return share


def picture(kind: int, seed: int, height: int = 70, width: int = 90) -> np.ndarray:
    """A noisy picture of class ``kind``, (H, W, 3) uint8: a colour and a pattern of its own."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[0:height, 0:width]
    period, phase = rng.integers(10, 16), rng.integers(0, 10)
    pattern = (
        (x + phase) // (period // 2) % 2,
        ((x + phase) // period + y // period) % 2,
        (np.hypot(x - width / 2 - phase, y - height / 2) < 2 * period).astype(int),
        (y + phase) / (height + 10),
    )[kind]
    pixels = 30 + pattern[..., None] * (_COLOURS[kind] - 30) + rng.normal(0, 6, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def pictures(per_class: int = 6) -> list[np.ndarray]:
    return [picture(kind, seed) for kind in range(len(CLASSES)) for seed in range(per_class)]


def write_photos(folder: Path, names: Sequence[str] = CLASSES, per_class: int = 6) -> Path:
    """One sub-folder per class, called ``names``. Returns ``folder``."""
    for kind, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for seed in range(per_class):
            Image.fromarray(picture(kind, seed)).save(folder / name / f"{seed}.png")
    return folder


def write_noise(folder: Path, count: int = 52) -> Path:
    """Photographs that say nothing about any class. Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


def write_classes(path: Path, names: Sequence[str] = CLASSES) -> Path:
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


def quick(**training: Any) -> dict[str, dict[str, Any]]:
    """Options of a run that every training method finishes in a second."""
    return {"training": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "precision": "float32", **training}}


def options_for(method: str, **training: Any) -> Mapping[str, Any]:
    """:func:`quick`, or nothing but the precision for a method that does not train."""
    return with_support(method, CLASSES, quick(**training) if find_method(method).trains else {"training": {"precision": "float32"}})


def with_support(method: str, names: Sequence[str], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with a support set of one captioned picture a class, where the method needs one."""
    if "support" not in find_method(method).needs:
        return options
    return {**options, "method": {**options.get("method", {}), "support": str(_support_folder(tuple(names)))}}


@cache
def _support_folder(names: tuple[str, ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="finelens-support-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = ["file,label,caption"]
    for kind, name in enumerate(names):
        Image.fromarray(picture(kind, 99)).save(folder / f"{kind}.png")
        rows.append(f"{kind}.png,{name},a picture of {name}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def hints_for(method: str, images: int, classes: int) -> Hints | None:
    """Labels for the first image of each class that there are images for, where the method needs them; whether they are true is of no matter here."""
    if not find_method(method).few_shot:
        return None
    count = min(images, classes)
    return Hints(torch.arange(count), torch.arange(count))


def hints_file(method: str, folder: Path, photos: Path, source: Path | None = None) -> dict[str, Path]:
    """``hints=`` for a run on ``photos``, where the method needs it: the true class of every picture, written to a file next to ``folder``.

    Args:
        method: Name of the method.
        folder: Run folder; only its name is used.
        photos: Target pictures.
        source: Where the same pictures lie in folders of their class; ``photos`` by default.
    """
    if not find_method(method).few_shot:
        return {}
    truth = {digest(path): path.parent.name for path in (source or photos).rglob("*.png")}
    rows = [f"{path.relative_to(photos).as_posix()},{truth[digest(path)]}" for path in sorted(photos.rglob("*.png"))]
    path = folder.with_name(f"{folder.name}-hints.csv")
    path.write_text("\n".join(["path,label", *rows, ""]), encoding="utf-8")
    return {"hints": path}


class Log:
    """Collects the events of a run."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, event: str, **fields: Any) -> int:
        self.events.append({"event": event, **fields})
        return len(self.events)

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events if event["event"] == "epoch"]


def prepare_toy(backbone: Path | str, method: str, names: Sequence[str] = CLASSES, options: Mapping[str, Any] | None = None, seed: int = 0):
    """Configuration and prepared parts of a run with a backbone: a folder in open_clip's layout, or a specification."""
    options = with_support(method, names, options or options_for(method))
    config = make_config(
        "adapt", "(toy)", method, options, backbone=backbone if isinstance(backbone, str) else f"local:{backbone}", seed=seed, device="cpu"
    )
    return config, prepare(config, names, None, QUIET)


def fit_toy(
    backbone: Path | str,
    method: str,
    images: Sequence[np.ndarray],
    names: Sequence[str] = CLASSES,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Prepared, Fitted, Log]:
    """A whole adaptation in memory."""
    config, prepared = prepare_toy(backbone, method, names, options, seed)
    store = load(images, decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    log = Log()
    return prepared, fit(prepared, store, config, QUIET, Hooks(run=log), hints=hints_for(method, len(store), len(names))), log


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop_after(steps: int):
    """A ``should_stop`` that says yes after so many training steps."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def events(run: Path) -> list[dict[str, Any]]:
    """Events of a run without what may differ between two equal runs: times, lines that say it was resumed, and forwards that the cache may spare."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "seconds", "no_grad_forwards")} for line in lines if line["event"] != "resume"]


def forwards(run: Path) -> tuple[int, int]:
    """Images that a finished run encoded, without and with gradient."""
    end = json.loads((run / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return end["no_grad_forwards"], end["grad_forwards"]


def load_script(path: Path) -> ModuleType:
    """A script of the project as a module, without running its command."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    # As for ``python SCRIPT``, what stands beside it can be imported.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module
