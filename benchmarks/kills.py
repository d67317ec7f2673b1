"""Kill runs with SIGKILL at random times, resume them, and compare the results bit for bit with a run that nothing interrupted.

    python benchmarks/kills.py --kills 50 --out benchmarks/results/kills.jsonl

For each method one run is left alone. Then runs are started, killed after a random share of that run's time, resumed, perhaps killed again (each
attempt with the same chance), and at last resumed to the end: weights, predictions and events must equal those of the first, byte for byte (events
without times). A kill counts when the process died of it. Runs are forked from one process that has imported everything, so a start costs no time;
pictures and backbone are the small ones of the tests. One JSON line per attempt and per run, a summary at the end; exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tests.backbones.checkpoints import write_tiny_vit
from tests.toy import digest, events, quick, write_classes, write_photos

import finelens
from finelens import api
from finelens.core.console import Console

QUIET = Console(enabled=False)
RESULTS = ("model/model.safetensors", "model/zero_shot.safetensors", "model/model.json", "predictions.csv")
METHODS = ("microclip", "fair", "dpa")
FEW_CROPS: dict[str, dict[str, Any]] = {"microclip": {"crops": 2}, "fair": {"crops": 2, "keep": 1}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--again", type=float, default=0.6, help="chance that a resumed run is killed again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        {
            "command": "python benchmarks/kills.py " + " ".join(sys.argv[1:]),
            "finelens": finelens.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    ]
    with tempfile.TemporaryDirectory(prefix="finelens-kills-") as folder:
        lines += Kills(Path(folder), given).run()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(json.dumps(lines[-1], indent=2))
    return 0 if lines[-1]["all_equal"] else 1


class Kills:
    """The runs of one benchmark, below one folder."""

    def __init__(self, root: Path, given: argparse.Namespace) -> None:
        self.root, self.given, self.draw = root, given, random.Random(given.seed)
        self.photos = write_photos(root / "photos", per_class=8)
        self.classes = write_classes(root / "classes.txt")
        self.backbone = write_tiny_vit(root / "backbone")
        self.lines: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        whole, seconds = {}, {}
        for method in self.given.methods:
            whole[method] = self.root / f"{method}-whole"
            start = time.perf_counter()
            code = self.attempt(lambda m=method: self.start(m, whole[m]), None)
            seconds[method] = time.perf_counter() - start
            if code:
                raise SystemExit(f"the uninterrupted run of {method} failed")
            self.lines.append({"run": whole[method].name, "method": method, "seconds": round(seconds[method], 2), "results": results(whole[method])})
        kills = finished = 0
        equal = True
        while kills < self.given.kills:
            method = self.given.methods[finished % len(self.given.methods)]
            out = self.root / f"{method}-{finished}"
            kills += self.one(method, out, seconds[method])
            same = results(out) == results(whole[method]) and events(out) == events(whole[method])
            equal &= same
            finished += 1
            self.lines.append({"run": out.name, "method": method, "equal": same, "results": results(out)})
            print(f"{kills} kills, {finished} runs, {method}: {'equal' if same else 'DIFFERENT'}", file=sys.stderr)
            shutil.rmtree(out)
        self.lines.append({"kills": kills, "runs": finished, "methods": list(self.given.methods), "all_equal": equal})
        return self.lines

    def one(self, method: str, out: Path, seconds: float) -> int:
        """Kill and resume one run until it ends. Returns the number of kills."""
        kills, kill = 0, True
        while True:
            resumed = (out / "config.json").exists()
            after = self.draw.uniform(0, seconds) if kill else None
            work = (lambda: self.resume(out)) if resumed else (lambda: self.start(method, out))
            code = self.attempt(work, after)
            killed = code == -signal.SIGKILL
            self.lines.append(
                {
                    "run": out.name,
                    "verb": "resume" if resumed else "adapt",
                    "kill_after": None if after is None else round(after, 3),
                    "killed": killed,
                    "epochs_done": epochs_done(out),
                    "checkpoint": (out / "checkpoint" / "last.safetensors").exists(),
                }
            )
            kills += killed
            if not killed:
                if code:
                    raise SystemExit(f"{out.name} failed with {code}")
                return kills
            kill = self.draw.random() < self.given.again

    def start(self, method: str, out: Path) -> None:
        options = quick(epochs=self.given.epochs) | {"method": FEW_CROPS.get(method, {})}
        api.adapt(self.photos, self.classes, out, method=method, backbone=f"local:{self.backbone}", options=options, console=QUIET)

    def resume(self, out: Path) -> None:
        api.resume(out, console=QUIET)

    def attempt(self, work: Callable[[], None], kill_after: float | None) -> int:
        """Run in a forked process; returns its exit code, negative for a signal."""
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if kill_after is not None:
            deadline = time.perf_counter() + kill_after
            while time.perf_counter() < deadline:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    break
                time.sleep(0.001)
            else:
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(out: Path) -> dict[str, str]:
    return {name: digest(out / name) for name in RESULTS}


def epochs_done(out: Path) -> int:
    path = out / "events.jsonl"
    return path.read_bytes().count(b'"event": "epoch"') if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
