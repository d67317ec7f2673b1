"""Processor and wall time of photographs, texts and whole runs, of another checkout and of this one in turn. One JSON line per measurement.

    git worktree add ../before 3a1909f
    python benchmarks/encode_versions.py PHOTOS --before ../before/src --out rows.jsonl

PHOTOS is a folder for photographs that are made there once: noise of all scales, 4000 x 3000 and 500 x 375 pixels, JPEG of quality 90, and ``--many``
of 500 x 375 pixels cut from the large ones. Every measurement is a process of its own; sides take turns.

* ``encode``: files to features with the embedded encoder, in a process that is warm (decode, resize, tower).
* ``texts``: descriptions, in a process that is warm; then the same with one in 20 new. ``new-texts`` is the first of these alone.
* ``adapt``: the command as a whole, first with an empty cache, then again. The other checkout runs ``joint-gmm``, its best method; this one the
  default, and ``joint-gmm`` once more from the cache.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

THIS = Path(__file__).resolve().parent.parent / "src"
SIDES = ("before", "now")
NOISE, QUALITY = 2.5, 90
WORDS = ["small", "large", "red", "blue", "striped", "spotted", "long", "short", "curved", "feathered", "smooth", "shiny", "dark", "pale", "broad"]
PARTS = ["wing", "tail", "beak", "leaf", "petal", "wheel", "door", "roof", "handle", "ear", "paw", "fin", "horn", "shell", "stem", "crown", "window"]


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Noise of all scales, as the spectra of photographs have, and that of a sensor."""
    rng, total, size = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32), 4
    while size < width:
        rows = max(2, round(size * height / width))
        for channel in range(3):
            field = Image.fromarray(rng.standard_normal((rows, size)).astype(np.float32))
            total[..., channel] += np.asarray(field.resize((width, height), Image.Resampling.BICUBIC)) / size**0.75
        size *= 2
    total = (total - total.mean()) / total.std() * 50 + 128 + rng.standard_normal((height, width, 1)).astype(np.float32) * NOISE
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def make_photographs(root: Path, many: int) -> None:
    for kind, width, height, count in (("large", 4000, 3000, 8), ("small", 500, 375, 128)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = root / kind / f"{i:05}.jpg"
            if not path.exists():
                photograph(width, height, i).save(path, quality=QUALITY)
    cut = root / f"many-{many}"
    cut.mkdir(exist_ok=True)
    if len(list(cut.iterdir())) < many:
        wholes = [Image.open(path).convert("RGB") for path in sorted((root / "large").iterdir())]
        rng = np.random.default_rng(0)
        for i in range(many):
            width = int(rng.integers(500, 2000))
            height = width * 3 // 4
            left, top = int(rng.integers(0, 4000 - width)), int(rng.integers(0, 3000 - height))
            part = wholes[i % len(wholes)].resize((500, 375), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
            part.save(cut / f"{i:05}.jpg", quality=QUALITY)


def descriptions(count: int, seed: int) -> list[str]:
    """Sentences of 12 to 30 words."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(["a photo of a thing with a", *(f"{rng.choice(WORDS)} {rng.choice(PARTS)}" for _ in range(rng.integers(3, 12)))])
        for _ in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="the src folder of the other checkout")
    parser.add_argument("--parts", nargs="+", default=["encode", "texts", "adapt"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of part encode; the others take one")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--images", type=int, default=128, help="small photographs of part encode; of large ones a sixteenth")
    parser.add_argument("--many", type=int, default=2000, help="photographs of part adapt")
    parser.add_argument("--texts", type=int, default=1000, help="texts of parts texts and new-texts")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    make_photographs(given.photos, given.many)
    # As an installer leaves a package, whatever the environment says of writing bytecode.
    for source in (given.before, THIS):
        compileall.compile_dir(source, quiet=2)
    jobs = [(part, threads) for part in given.parts for threads in (given.threads if part == "encode" else [1])]
    for part, threads in jobs:
        rows: list[dict[str, Any]] = []
        for _ in range(given.turns):
            for side in SIDES:
                place = {"PYTHONPATH": str(given.before if side == "before" else THIS), "OMP_NUM_THREADS": str(threads)}
                if part == "adapt":
                    with tempfile.TemporaryDirectory() as cache:
                        found = adapted(given.photos / f"many-{given.many}", side, Path(cache), os.environ | place | {"FINELENS_CACHE": cache})
                else:
                    count = given.texts if part.endswith("texts") else given.images
                    command = [sys.executable, __file__, "--inside", part, str(given.photos), str(count)]
                    place["FINELENS_CACHE"] = str(given.photos / f"cache-{side}")
                    said = subprocess.run(command, env=os.environ | place, check=True, capture_output=True, text=True).stdout
                    found = [json.loads(line) for line in said.splitlines()]
                for row in found:
                    rows.append({"part": part, "threads": threads, "side": side, **row})
                    made = {"load": round(os.getloadavg()[0], 1), "torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
                    with given.out.open("a") as file:
                        file.write(json.dumps(rows[-1] | made) + "\n")
        for what in dict.fromkeys(row["what"] for row in rows):
            least = {
                side: [min(row[key] for row in rows if (row["what"], row["side"]) == (what, side)) for key in ("cpu", "wall")]
                for side in SIDES
                if any((row["what"], row["side"]) == (what, side) for row in rows)
            }
            print(part, threads, what, least, flush=True)


def adapted(photos: Path, side: str, cache: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    words = [
        "abbey",
        "badger",
        "cactus",
        "dolphin",
        "elm",
        "fern",
        "goose",
        "harbour",
        "iris",
        "jay",
        "kite",
        "lizard",
        "maple",
        "newt",
        "otter",
        "poppy",
    ]
    (cache / "classes.txt").write_text("\n".join(words) + "\n")
    texts = iter(descriptions(20 * len(words), 1))
    (cache / "descriptions.json").write_text(json.dumps({word: [next(texts) for _ in range(20)] for word in words}))
    command = [
        "-m",
        "finelens",
        "adapt",
        str(photos),
        "--classes",
        str(cache / "classes.txt"),
        "--descriptions",
        str(cache / "descriptions.json"),
    ]
    method = ["--method", "joint-gmm"]
    runs = [("cold", method if side == "before" else []), ("again", method if side == "before" else [])]
    runs += [("again, joint-gmm", method)] if side == "now" else []
    found = []
    for what, own in runs:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        out = ["--out", str(cache / what.replace(", ", "-"))]
        subprocess.run([sys.executable, *command, *own, *out], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append({"what": what, "cpu": round(cpu, 2), "wall": round(time.perf_counter() - start, 2)})
    return found


def timed(what: str, work: Callable[[], object]) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    print(json.dumps({"what": what, "cpu": round(time.process_time() - cpu, 3), "wall": round(time.perf_counter() - wall, 3)}))


def inside(part: str, photos: Path, count: int) -> None:
    """One measurement in this process, with whichever finelens is on the path."""
    from finelens.backbones.embedded import EmbeddedBackbone

    try:
        from finelens.engine.device import choose_precision
        from finelens.engine.engine import Engine
    except ImportError:
        from finelens.training.engine import Engine  # type: ignore[import-not-found, no-redef]
        from finelens.training.precision import choose_precision  # type: ignore[import-not-found, no-redef]
    device = torch.device("cpu")
    backbone = EmbeddedBackbone()
    # Chooses the type of photographs and, since there is a choice, of texts.
    engine = Engine(backbone, device, choose_precision("auto", device))
    if part.endswith("texts"):
        # Texts that no earlier turn has left in the cache.
        seed = int(time.time())
        backbone.encode_text(descriptions(40, seed))
        texts = descriptions(count, seed + 1)
        timed(f"{count} texts", lambda: backbone.encode_text(texts))
        if part == "new-texts":
            return
        timed("one in 20 of them new", lambda: backbone.encode_text([*texts[count // 20 :], *descriptions(count // 20, seed + 2)]))
        return
    from finelens.images.batches import centre_batches
    from finelens.images.store import load_images

    def encode(kind: str, tower: bool = True) -> None:
        loaded = load_images(sorted((photos / kind).iterdir())[: count if kind == "small" else count // 16])
        for _, views in centre_batches(loaded.store, backbone.preprocess, 64):
            if tower:
                engine.encode_each(views)

    encode("large")
    for kind in ("small", "large"):
        timed(kind, lambda: encode(kind))  # noqa: B023 - called at once
        timed(f"{kind}, without the tower", lambda: encode(kind, tower=False))  # noqa: B023 - called at once


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
