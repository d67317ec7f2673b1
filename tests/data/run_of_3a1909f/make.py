"""Writes the folder ``run_of_3a1909f``: runs by the code of commit 3a1909f, which later code has to read, predict from and resume.

    git worktree add ../old 3a1909f
    PYTHONPATH=../old/src OMP_NUM_THREADS=1 python tests/data/run_of_3a1909f/make.py DIR

``finished`` is by microCLIP and ``interrupted`` by DPA, both on ``photos``; ``solved`` is by joint-gmm on the feature file of the same pictures and
an array of a second encoder. ``expected`` holds what the same code answers. Where the folder stood is replaced by ``@ROOT@``.

Run with later code this would write what that code makes, and prove nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import finelens

CLASSES = ("red stripe", "green check", "blue disc", "yellow ramp")
COLOURS = np.array([(220, 40, 40), (40, 190, 60), (40, 60, 220), (230, 210, 40)])
PER_CLASS = 4
HEIGHT, WIDTH = 40, 48
# Most of such a model is the table of the 49,408 tokens: hence so narrow a text tower, and half precision.
MODEL = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
OPTIONS = {"training": {"epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "float32", "guard": "off"}}
TEXTS = ("a photo of a {}.", "a {} seen from some distance.", "an everyday snapshot with a {} in it.")
# Of eight: the second epoch is half done.
STEPS = 6
ROOT = "@ROOT@"


def picture(kind: int, seed: int) -> np.ndarray:
    """A noisy picture of class ``kind``, (H, W, 3) uint8."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    period, phase = rng.integers(6, 12), rng.integers(0, 6)
    pattern = (
        (x + phase) // (period // 2) % 2,
        ((x + phase) // period + y // period) % 2,
        (np.hypot(x - WIDTH / 2 - phase, y - HEIGHT / 2) < 2 * period).astype(int),
        (y + phase) / (HEIGHT + 6),
    )[kind]
    pixels = 30 + pattern[..., None] * (COLOURS[kind] - 30) + rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_photos(folder: Path) -> None:
    """Pictures in one sub-folder per class."""
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for seed in range(PER_CLASS):
            Image.fromarray(picture(kind, seed)).save(folder / name / f"{seed}.png", optimize=True)


def write_checkpoint(folder: Path, photos: Path) -> None:
    """A small random model in the layout that open_clip saves, with a text projection that makes it know something of the classes."""
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(MODEL))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                # Off its neutral value, so that a forgotten bias or norm shows.
                parameter.add_(0.2 * torch.randn_like(parameter))
        # Four numbers are all that the text tower has: the words that tell the classes apart speak up there, and all others are still.
        model.positional_embedding.mul_(0.05)
        model.token_embedding.weight.mul_(0.03)
        for kind, name in enumerate(CLASSES):
            model.token_embedding.weight[open_clip.tokenize(name)[0, 1]] = torch.eye(len(CLASSES))[kind]
        model.half().float()
        images = torch.stack([torch.nn.functional.normalize(model.encode_image(pixels(photos, name)), dim=1).mean(0) for name in CLASSES])
        model.text_projection.data = torch.eye(len(model.text_projection))
        texts = torch.stack([model.encode_text(open_clip.tokenize([text.format(name) for text in TEXTS])).mean(0) for name in CLASSES])
        # Each text points to where its own images are and those of the other classes are not: what all images share says nothing.
        wanted = torch.linalg.pinv(images, rtol=0.01).T  # (C, E)
        wanted = wanted - wanted.mean(0)
        model.text_projection.data = torch.linalg.pinv(texts) @ torch.nn.functional.normalize(wanted, dim=1)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}, indent=1) + "\n")


def pixels(photos: Path, name: str) -> torch.Tensor:
    """The pictures of a class as the image tower takes them, but for the exact filter."""
    size = MODEL["vision_cfg"]["image_size"]
    arrays = [np.asarray(Image.open(path).resize((size, size)), dtype=np.float32) / 255 for path in sorted((photos / name).iterdir())]
    mean, std = (np.array(PREPROCESS[key], dtype=np.float32) for key in ("mean", "std"))
    return torch.from_numpy((np.stack(arrays) - mean) / std).permute(0, 3, 1, 2)


def write_second_view(photos: Path, folder: Path) -> None:
    """Mean colours of 4 x 4 cells as the features of another encoder: an array, and the names of its rows."""
    paths = sorted(photos.rglob("*.png"))
    cells = [np.asarray(Image.open(path), dtype=np.float32).reshape(4, HEIGHT // 4, 4, WIDTH // 4, 3).mean((1, 3)).ravel() for path in paths]
    np.save(folder / "colours.npy", np.stack(cells) / 255 - 0.5)
    (folder / "colours.txt").write_text("".join(f"{path.relative_to(photos).as_posix()}\n" for path in paths))


def stop_after(steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes after so many training steps."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def interrupt(root: Path, name: str) -> None:
    """A run that stops in its second epoch."""
    with contextlib.suppress(Exception):
        adapt(root, name, "dpa", should_stop=stop_after(STEPS))
    assert (root / name / "checkpoint" / "last.safetensors").is_file()
    assert not (root / name / "predictions.csv").exists()


def adapt(root: Path, name: str, method: str, **given) -> None:
    """A run of one of the methods that train."""
    finelens.adapt(root / "photos", root / "classes.txt", root / name, method=method, backbone=f"local:{root / 'backbone'}", options=OPTIONS, **given)


def forget_root(root: Path) -> None:
    """Put the placeholder for the root in every file below it."""
    here, log = str(root), root / "interrupted" / "events.jsonl"
    before = log.stat().st_size
    for path in (path for path in root.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
        path.write_bytes(path.read_bytes().replace(here.encode(), ROOT.encode()))
    rewrite(root / "features" / "photos.safetensors", lambda text: text.replace(here, ROOT))
    # A checkpoint names the length of the events that it rests on, and their paths have another length now.
    grown = log.stat().st_size - before
    rewrite(root / "interrupted" / "checkpoint" / "last.safetensors", lambda text: longer_events(text, grown))
    left = [path for path in root.rglob("*") if path.is_file() and here.encode() in path.read_bytes()]
    assert not left, left


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change the texts in the header of a tensor file."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no mapping
    save_file(tensors, path, {name: change(text) for name, text in metadata.items()})


def longer_events(text: str, grown: int) -> str:
    """The position in a checkpoint with events of another length."""
    position = json.loads(text)
    return json.dumps({**position, "events_offset": position["events_offset"] + grown})


def main() -> None:
    """Entry point."""
    target = Path(sys.argv[1])
    torch.set_num_threads(1)
    # No character that Markdown or HTML would escape.
    root = Path(tempfile.gettempdir(), "oldruns").resolve()
    root.mkdir()
    os.environ["FINELENS_CACHE"] = str(root / "cache")
    shutil.copy(__file__, root / "make.py")
    write_photos(root / "photos")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    write_checkpoint(root / "backbone", root / "photos")
    (root / "features").mkdir()
    (root / "expected").mkdir()
    adapt(root, "finished", "microclip")
    interrupt(root, "interrupted")
    finelens.features(root / "photos", root / "features" / "photos.safetensors", backbone=f"local:{root / 'backbone'}")
    write_second_view(root / "photos", root / "features")
    extra = {"extra": [root / "features" / "colours.npy"], "extra_names": [root / "features" / "colours.txt"]}
    options = {"training": {"precision": "float32"}}
    finelens.adapt(root / "features" / "photos.safetensors", root / "classes.txt", root / "solved", method="joint-gmm", options=options, **extra)
    # What the same code says of these runs.
    finelens.predict(root / "finished", root / "photos", root / "expected" / "predict.csv")
    finelens.predict(root / "solved", root / "features" / "photos.safetensors", root / "expected" / "solved.csv", **extra)
    np.save(root / "expected" / "probabilities.npy", finelens.load(root / "finished").predict_proba(root / "photos"))
    shutil.copytree(root / "interrupted", root / "copy")
    finelens.resume(root / "copy")
    shutil.copy(root / "copy" / "predictions.csv", root / "expected" / "resumed.csv")
    shutil.rmtree(root / "copy")
    shutil.rmtree(root / "cache")
    forget_root(root)
    shutil.copytree(root, target, dirs_exist_ok=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
