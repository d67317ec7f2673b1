"""Load on ``finelens serve`` at loopback: every answer is compared with the run's own, bad images are mixed in, and it is stopped in the middle.

    finelens adapt pets37/test --classes pets37/classes.txt --out pets37-run
    python benchmarks/serve.py pets37-run

Needs the extra ``serve``, and httpx.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from finelens.images.decode import DecodedImage
from finelens.images.discover import visible_files
from finelens.images.store import EncodedImage
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.folder import RunFolder
from finelens.serving.answers import Answers
from finelens.serving.settings import Settings

CLIENTS, REQUESTS, PHOTOS, ALONE = 32, 2000, 100, 100
# Good photographs in ten requests: seven alone, and two in a form.
PER_TEN = 9
BATCH = Settings().batch
# Of a probability; the last bits depend on the batch.
TOLERANCE = 1e-4
TEXT = b"this is no image"


@dataclass
class Seen:
    """What came back."""

    kinds: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float) -> None:
        with self.lock:
            self.kinds[kind] += 1
            self.seconds.append(seconds)


class World:
    """Photographs with the run's own answers, and what is asked of them."""

    def __init__(self, run: Path) -> None:
        self.classifier: Classifier = load_run(run)
        files = visible_files(Path(RunFolder.open(run, lock=False).config.photos))[:PHOTOS]
        self.paths = [file.path for file in files]
        self.data = [path.read_bytes() for path in self.paths]
        self.wanted = self.classifier.predict_proba(self.paths)

    def ask(self, client: httpx.Client, i: int) -> str:
        """One request, the i-th: ``right``, or what was wrong."""
        row, image = i % len(self.data), {"content-type": "image/jpeg"}
        turn = i % 10
        if turn == 3:  # a form of three, the middle one no image
            names = [row, (row + 1) % len(self.data)]
            parts = [self.data[names[0]], TEXT, self.data[names[1]]]
            told = client.post("/predict?top=0", files=[("images", (f"{k}.jpg", part)) for k, part in enumerate(parts)])
            if told.status_code != 200:
                return f"status {told.status_code}"
            first, middle, last = told.json()["answers"]
            return "right" if self._same(first, names[0]) and self._same(last, names[1]) and middle["status"] == "corrupt" else "wrong"
        if turn == 6:  # half of a photograph
            told = client.post("/predict?top=0", content=self.data[row][: len(self.data[row]) // 2], headers=image)
            return "right" if told.status_code == 200 and told.json()["answers"][0]["status"] == "corrupt" else "wrong"
        if turn == 9:  # no image at all, nothing, or the wrong kind
            kind, content, status = [("image/png", TEXT, 200), ("image/png", b"", 400), ("application/json", b"{}", 415)][i // 10 % 3]
            return "right" if client.post("/predict", content=content, headers={"content-type": kind}).status_code == status else "wrong"
        told = client.post("/predict?top=0", content=self.data[row], headers=image)
        if told.status_code != 200:
            return f"status {told.status_code}"
        return "right" if self._same(told.json()["answers"][0], row) else "wrong"

    def _same(self, answer: dict[str, dict[str, float]], row: int) -> bool:
        given = [answer["probabilities"].get(name, np.nan) for name in self.classifier.classes]
        return bool(np.abs(np.array(given) - self.wanted[row]).max() < TOLERANCE)


class Server:
    """The command in a process of its own."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-u", "-m", "finelens", "serve", str(run), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"http://\S+", line)
            if found:
                self.address = found.group()
                return
        raise SystemExit(f"the server ended with {self.process.wait()}")

    def stop(self) -> tuple[int, float, str]:
        """Exit code, seconds, and what was said."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, time.perf_counter() - started, said.strip()


def load(world: World, address: str, requests: int, seen: Seen) -> float:
    """Seconds that all clients took."""
    started = time.perf_counter()

    def client_of(number: int) -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            for i in range(number, requests, CLIENTS):
                begun = time.perf_counter()
                try:
                    kind = world.ask(client, i)
                except httpx.HTTPError as error:
                    kind = type(error).__name__
                seen.add(kind, time.perf_counter() - begun)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client_of, range(CLIENTS)))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    given = parser.parse_args()
    world = World(given.run)
    started = time.perf_counter()
    for path in world.paths[:ALONE]:
        world.classifier.predict_proba([path])
    alone = len(world.paths[:ALONE]) / (time.perf_counter() - started)
    # Not predict_proba of all: from sixteen photographs on it takes their features from the cache.
    answers = Answers(world.classifier, None, 1 << 30)
    started = time.perf_counter()
    for start in range(0, len(world.data), BATCH):
        found = [answers.decode(EncodedImage(data, "")) for data in world.data[start : start + BATCH]]
        answers.probabilities([image for image in found if isinstance(image, DecodedImage)])
    together = len(world.data) / (time.perf_counter() - started)
    server, seen = Server(given.run), Seen()
    seconds = load(world, server.address, given.requests, seen)
    code, took, said = server.stop()
    p50, p99 = np.percentile(seen.seconds, [50, 99])
    print(f"{given.requests} requests of {CLIENTS} clients: {dict(seen.kinds)}; p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms")
    print(f"{given.requests / seconds:.1f} requests/s, {PER_TEN * given.requests / 10 / seconds:.1f} good photographs/s")
    print(f"one process calling predict_proba: {alone:.1f}/s a photograph at a time, without HTTP, {BATCH} at a time: {together:.1f}/s")
    print(f"SIGTERM after the load: exit code {code} after {took:.1f} s, said {said!r}")
    server, seen = Server(given.run), Seen()
    loading = threading.Thread(target=load, args=(world, server.address, given.requests // 5, seen))
    loading.start()
    while sum(seen.kinds.values()) < given.requests // 20:
        time.sleep(0.05)
    code, took, said = server.stop()
    loading.join()
    print(f"SIGTERM in the middle: exit code {code} after {took:.1f} s; {dict(seen.kinds)}")


if __name__ == "__main__":
    main()
