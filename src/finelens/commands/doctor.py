"""``finelens doctor``: what a bug report needs, and whether everything that a run rests on works here."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import click

from finelens.commands.cache import size_text
from finelens.core.console import Console, duration
from finelens.core.schemas import VERSION
from finelens.core.voice import voice
from finelens.errors import UserError

NEEDED = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "numpy", "scikit-learn", "pillow")
# Packages of extras, by what they are for.
OPTIONAL = {
    "rawpy": "camera raw (raw)",
    "pydicom": "DICOM (dicom)",
    "pillow-jxl-plugin": "JPEG XL (jxl)",
    "pyarrow": "Parquet (parquet)",
    "onnxruntime": "export --to onnx (onnx)",
    "fastapi": "serve (serve)",
}
# Made-up photographs that are encoded to measure the speed.
PROBE = 16


@click.command()
@voice
@click.option("--backbone", default="embedded", show_default=True, help="Model to load and to measure; one of a hub is fetched, as a run would.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
def doctor(backbone: str, device: str, console: Console) -> None:
    """Say what finelens has to work with here: versions, devices, cache, and how fast a model is. Exit code 2 if something does not work."""
    problems: list[str] = []
    found: dict[str, Any] = {
        "finelens": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in NEEDED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "plugins": _plugins(),
        "cache": _cache(problems),
        "devices": _devices(),
        "backbone": _backbone(backbone, device, problems),
        "problems": problems,
    }
    console.answer("\n".join(_lines(found)), **found)
    if problems:
        raise UserError("; ".join(problems))


def _version(package: str) -> str | None:
    # Not at the top: ``--help`` gets as far as there.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plugins() -> dict[str, Any]:
    from finelens.methods.registry import METHODS, all_methods, plugin_problems

    return {"methods": [method.name for method in all_methods()[len(METHODS) :]], "problems": list(plugin_problems())}


def _cache(problems: list[str]) -> dict[str, Any]:
    import shutil

    from finelens.storage.cache_place import cache_files, cache_folder, cache_limit

    try:
        folder = cache_folder()
    except UserError as error:
        problems.append(error.message)
        return {"folder": None, "writable": False, "bytes": 0, "limit": cache_limit(), "free": 0}
    # The nearest folder that is there decides whether it can be made.
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path(folder.anchor or "."))
    writable = os.access(there, os.W_OK)
    if not writable:
        problems.append(f"the cache folder {folder} cannot be written, so photographs are encoded again each time: set FINELENS_CACHE to another")
    free = shutil.disk_usage(there).free
    return {
        "folder": str(folder),
        "writable": writable,
        "bytes": sum(file.size for file in cache_files()),
        "limit": cache_limit(),
        "free": free,
    }


def _devices() -> dict[str, Any]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"cpu_threads": torch.get_num_threads(), "cuda": names, "mps": bool(torch.backends.mps.is_available())}


def _backbone(spec: str, device: str, problems: list[str]) -> dict[str, Any]:
    """Whether it can be loaded and encodes an image and a text, and how fast."""
    from finelens.backbones.registry import load_backbone

    start = time.perf_counter()
    try:
        loaded = load_backbone(spec)
        load_seconds = time.perf_counter() - start
        loaded.encode_text(["a photograph"])
        each = _seconds_each(loaded, device)
    # Whatever a library raises, the rest of the account is worth having.
    except Exception as error:
        problems.append(f"backbone {spec}: {error}")
        return {"name": spec, "works": False}
    return {"name": loaded.name, "works": True, "load_seconds": round(load_seconds, 2), "device": device, "images_per_second": round(1 / each, 2)}


def _seconds_each(backbone: Any, device: str) -> float:
    import torch

    from finelens.engine.device import choose_device, choose_precision
    from finelens.engine.engine import Engine
    from finelens.runs.plan import encoding_seconds

    place = choose_device(device)
    side = backbone.preprocess.image_size
    pixels = torch.randint(0, 256, (PROBE, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return encoding_seconds(Engine(backbone, place, choose_precision("auto", place)), pixels)


def _lines(found: dict[str, Any]) -> list[str]:
    """For a person."""
    devices, cached, model = found["devices"], found["cache"], found["backbone"]
    lines = [
        f"finelens {found['finelens']}, Python {found['python']} at {sys.executable}",
        f"system     {found['platform']}, {found['processors']} processors, torch uses {devices['cpu_threads']} threads",
        "packages   " + ", ".join(f"{name} {number or 'MISSING'}" for name, number in found["packages"].items()),
        "optional   " + ", ".join(f"{OPTIONAL[name]} {number or 'not installed'}" for name, number in found["optional"].items()),
        f"devices    cpu{''.join(', ' + name for name in devices['cuda'])}{', mps' if devices['mps'] else ''}",
        f"cache      {cached['folder']}: {size_text(cached['bytes'])} of at most {size_text(cached['limit'])}; {size_text(cached['free'])} free",
    ]
    if model["works"]:
        thousand = duration(1000 / model["images_per_second"], rough=True)
        lines.append(
            f"model      {model['name']} on {model['device']}: {model['images_per_second']:g} photographs a second, 1,000 in about {thousand}"
        )
    if found["plugins"]["methods"]:
        lines.append(f"methods    of other packages: {', '.join(found['plugins']['methods'])}")
    lines += [f"problem    {text}" for text in (*found["plugins"]["problems"], *found["problems"])]
    return [*lines, "no problem was found" if not found["problems"] else f"{len(found['problems'])} to mend"]
