"""``predict --engine ray`` on two nodes of this machine, one of which is killed while both write, against one process. One JSON line.

    OMP_NUM_THREADS=1 python benchmarks/ray_nodes.py --photographs 2560

Photographs are noise of 64 x 64, every hundredth is no picture. Each side encodes into a cache of its own. ``seconds_two_nodes`` goes from the
question to the file, workers and their loading included; nodes are started before. The nodes share this machine's cores, so the times say what the
engine adds, not what a cluster saves.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ray.cluster_utils import Cluster

from finelens import api
from finelens.core.console import Console
from finelens.runs.arguments import PredictArguments
from finelens.runs.on_ray import part_count, predict_on_ray
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE

QUIET = Console(enabled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=2560)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measured(Path(place), given.photographs)))


def measured(place: Path, count: int) -> dict[str, object]:
    photos, run = place / "photos", place / "run"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        path = photos / f"{number:06d}.png"
        if number % 100 == 99:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    few = place / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:20]:
        (few / path.name).symlink_to(path)
    (place / "classes.txt").write_text("grey cloth\ncoloured sand\n")
    os.environ[ENVIRONMENT_VARIABLE] = str(place / "cache of one")
    api.zero_shot(few, place / "classes.txt", run, console=QUIET)
    start = time.monotonic()
    api.predict(run, photos, place / "one.csv", console=QUIET)
    alone = time.monotonic() - start
    os.environ[ENVIRONMENT_VARIABLE] = str(place / "cache of two")
    threads = torch.get_num_threads()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": threads, "include_dashboard": False})
    killed: list[float] = []
    over = threading.Event()
    try:
        second = machines.add_node(num_cpus=threads)
        start = time.monotonic()

        def kill() -> None:
            while not over.wait(0.02):
                if len(list(place.glob("two.csv.parts/*/.finelens-attempt-*/*.part"))) == 2:
                    machines.remove_node(second, allow_graceful=False)
                    killed.append(round(time.monotonic() - start, 1))
                    return

        threading.Thread(target=kill, daemon=True).start()
        lost = predict_on_ray(PredictArguments(run=run, photos=photos, csv=place / "two.csv"), QUIET, machines.address, groups=1)
        cluster = time.monotonic() - start
    finally:
        over.set()
        machines.shutdown()
    with (place / "two.csv").open(newline="", encoding="utf-8") as file:
        statuses = [row["status"] for row in csv.DictReader(file)]
    return {
        "photographs": count,
        "rows": len(statuses),
        "not_ok": sum(status != "ok" for status in statuses),
        "parts": part_count(count, 1),
        "node_killed_after_seconds": killed[0] if killed else None,
        "parts_written_again": lost,
        "same_bytes": (place / "one.csv").read_bytes() == (place / "two.csv").read_bytes(),
        "seconds_one_process": round(alone, 1),
        "seconds_two_nodes": round(cluster, 1),
    }


if __name__ == "__main__":
    main()
