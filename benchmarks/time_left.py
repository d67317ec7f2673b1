"""How right the time left is, over long runs on real photographs: what a run would have said at each moment, against what the rest then took.

    OMP_NUM_THREADS=1 python benchmarks/time_left.py DATA --out time_left.jsonl

DATA holds folders of photographs, which are taken in the order of their names. Nothing comes from the cache but where the name says so.

``features``    ``finelens features LIST --out NAME.features``, every twentieth photograph enlarged to 12 megapixels.
``large last``  The same, with the enlarged ones at the end: nothing in what was done tells what is coming.
``half cached`` The same without enlarged ones, the first half from the cache.
``predict``     ``finelens predict RUN SHARDS``, photographs and enlarged ones from tar files.
``training``    ``finelens adapt --method microclip`` on one of the folders.

The piece of work that took longest is judged. Each of its updates is kept with the clock and with the processor time of the process, and both are
gone through again as a log or another program would have: after a minute, each second, the time left is compared with what it was. On a machine that
others use, their load is in what the clock says and hardly in the other. ``within`` is the share of these moments at which it was less than 20 % off.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from finelens import api
from finelens.core.console import Console, Progress, _Pace

# Of a run, that nothing is judged by: the first minute, and the end, where a second is a fifth.
FIRST, LAST = 60.0, 5.0


class Recorder(Console):
    """Keeps all updates of each piece of work: clock, processor time, units."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        object.__setattr__(self, "works", [])

    @contextmanager
    def progress(self, total: int, what: str, unit: str = "image") -> Iterator[Progress]:
        steps = [(time.monotonic(), time.process_time(), 0.0)]
        vars(self)["works"].append((what, total, steps))

        class Bar:
            def update(self, n: float | None = 1) -> None:
                steps.append((time.monotonic(), time.process_time(), n or 0.0))

        yield Bar()
        steps.append((time.monotonic(), time.process_time(), 0.0))


def judged(total: int, steps: list[tuple[float, float, float]], clock: int) -> dict[str, Any]:
    """The errors of one clock, as shares of what was left."""
    now = [steps[0][clock]]
    pace = _Pace(total, lambda: now[0])
    end, errors, told = steps[-1][clock], [], 0.0
    for step in steps[1:]:
        now[0] = step[clock]
        pace.update(step[2])
        since, rest = now[0] - steps[0][clock], end - now[0]
        if since < FIRST or rest < LAST or now[0] - told < 1.0:
            continue
        told, left = now[0], pace.left(now[0])
        errors.append(float("inf") if left is None else abs(left / rest - 1))
    if not errors:
        return {"seconds": round(end - steps[0][clock], 1), "moments": 0}
    return {
        "seconds": round(end - steps[0][clock], 1),
        "moments": len(errors),
        "within": round(sum(error <= 0.2 for error in errors) / len(errors), 3),
        "median_error": round(statistics.median(errors), 3),
        "worst_error": round(max(errors), 3),
        "longest_silence": round(max(b[clock] - a[clock] for a, b in itertools.pairwise(steps)), 1),
    }


def enlarged(photos: list[Path], place: Path) -> list[Path]:
    """Every twentieth photograph, as 12 megapixels; twenty pictures of different bytes, since the decoder's time is all that counts."""
    large = place / "large"
    large.mkdir()
    pictures = []
    for path in photos[:: max(1, len(photos) // 20)]:
        stream = io.BytesIO()
        Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        pictures.append(stream.getvalue())
    for number in range(len(photos) // 20):
        (large / f"{number:06d}.jpg").write_bytes(pictures[number % len(pictures)] + str(number).encode())
    return sorted(large.iterdir())


def spread(photos: list[Path], place: Path) -> list[Path]:
    large = enlarged(photos, place)
    return [large[i // 20] if i % 20 == 0 and i // 20 < len(large) else path for i, path in enumerate(photos)]


def features(photos: list[Path], place: Path, console: Console) -> None:
    api_features(spread(photos, place), place / "all", console)


def large_last(photos: list[Path], place: Path, console: Console) -> None:
    large = enlarged(photos, place)
    api_features([*photos[len(large) :], *large], place / "all", console)


def half_cached(photos: list[Path], place: Path, console: Console) -> None:
    os.environ["FINELENS_CACHE"], os.environ["FINELENS_CACHE_GB"] = str(place / "cache"), "5"
    api_features(photos[: len(photos) // 2], place / "half", Console(enabled=False))
    api_features(photos, place / "all", console)


def api_features(photos: list[Path], out: Path, console: Console) -> None:
    from finelens.runs.encode_folder import encode_folder

    names = out.with_suffix(".txt")
    names.write_text("".join(f"{path}\n" for path in photos))
    encode_folder(out.with_suffix(".features"), names, "embedded", "cpu", None, None, console)


def copied(photos: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for number, path in enumerate(photos):
        shutil.copyfile(path, folder / f"{number:06d}{path.suffix}")
    return folder


def predict(photos: list[Path], place: Path, console: Console) -> None:
    shards = place / "shards"
    shards.mkdir()
    photos = spread(photos, place)
    for start in range(0, len(photos), 1000):
        with tarfile.open(shards / f"{start:06d}.tar", "w") as tar:
            for number, path in enumerate(photos[start : start + 1000], start):
                tar.add(path, f"{number:06d}{path.suffix}")
    few = copied(photos[:: max(1, len(photos) // 40)], place / "few")
    (place / "classes.txt").write_text("dog\ncat\naeroplane\nbridge\nfood\n")
    api.zero_shot(few, place / "classes.txt", place / "run", console=Console(enabled=False))
    api.predict_to(place / "run", shards, place / "new.csv", zero_shot=False, console=console)


def training(photos: list[Path], place: Path, console: Console) -> None:
    names = sorted({path.parent.name for path in photos})
    (place / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    few = copied(photos, place / "few")
    options = {"training": {"epochs": 6, "guard": "off"}}
    api.adapt(few, place / "classes.txt", place / "run", method="microclip", options=options, console=console)


KINDS: dict[str, Callable[[list[Path], Path, Console], None]] = {
    "features": features,
    "large last": large_last,
    "half cached": half_cached,
    "predict": predict,
    "training": training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--most", type=int, default=8000, help="photographs, spread over all; of training a fortieth, of one folder")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for kind in given.kinds:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measured, (kind, given.data, given.most))
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def measured(kind: str, data: Path, most: int) -> dict[str, Any]:
    from measuring import provenance

    os.environ["FINELENS_CACHE_GB"] = "0"
    sets = sorted(path for path in data.iterdir() if path.is_dir())
    if kind == "training":
        sets, most = [data / "pets37"] if (data / "pets37").is_dir() else sets[:1], most // 40
    photos = [path for folder in sets for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    kept = sorted(random.Random(0).sample(range(len(photos)), min(most, len(photos))))
    console = Recorder()
    with tempfile.TemporaryDirectory() as place:
        KINDS[kind]([photos[i] for i in kept], Path(place), console)
    what, total, steps = max(vars(console)["works"], key=lambda work: work[2][-1][0] - work[2][0][0])
    row = {"kind": kind, "photographs": len(kept), "what": what, "updates": len(steps), "clock": judged(total, steps, 0)}
    return row | {"processor": judged(total, steps, 1)} | provenance()


if __name__ == "__main__":
    main()
