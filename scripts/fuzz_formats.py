"""Mutate sound files of every format and decode them: no crash, no hang, no exception, and sound files stay right.

    python scripts/fuzz_formats.py --minutes 60 --out fuzz.json [--kinds heif avif] [--seed 0]

Decoding runs in a process of its own, so that a library that crashes or hangs is seen and named by format, seed and number of the mutation; what
it was given is not written anywhere. Only recipes that end in a status are kept for the corpus (tests/faults/corpus.json), the shortest for each kind
of answer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.faults.mutations import SOUND, mutated, recipes, sound

# A decoder that takes longer for a small file hangs: of processor time by the system's own limit, else (one that waits for something) by the clock.
PATIENCE_SECONDS = 20
WAITING_SECONDS = 600.0
AT_A_TIME = 500
# The imports, which take longer than some hundred decodes, are made once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["finelens.images.decode", "tests.faults.mutations"])


def work(kind: str, seed: int, start: int, count: int, pipe: Connection) -> None:
    """Decode some mutations of one format; before each its number is sent, and behind the last what was found."""
    from finelens.images.decode import DecodeLimits, Failure, decode_bytes

    warnings.simplefilter("ignore")
    data, limits = sound(kind), DecodeLimits(max_pixels=4_000_000)
    assert data is not None
    whole = decode_bytes(data, "a", limits)
    stream, found = recipes(data, np.random.default_rng([seed, start, *kind.encode()])), {}
    slowest = 0.0
    for number in range(start, start + count):
        recipe = next(stream)
        began = time.process_time()
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(began) + PATIENCE_SECONDS, hard))
        pipe.send(number)
        result = decode_bytes(mutated(data, recipe), "a", limits)
        slowest = max(slowest, time.process_time() - began)
        answer = re.sub(r"\d+", "#", f"{result.status}: {result.reason}"[:80]) if isinstance(result, Failure) else "ok"
        if len(recipe) < len(found.get(answer, recipe * 2 or [0])):
            found[answer] = recipe
    again = decode_bytes(data, "a", limits)
    same = not isinstance(whole, Failure) and not isinstance(again, Failure) and bool((whole.pixels == again.pixels).all())
    pipe.send({"found": found, "slowest": slowest, "sound": same})


def round_of(kind: str, seed: int, start: int, count: int) -> tuple[dict[str, Any], str]:
    """What a process found, and how it ended if not well."""
    here, there = multiprocessing.Pipe()
    process = CONTEXT.Process(target=work, args=(kind, seed, start, count, there), daemon=True)
    process.start()
    there.close()
    last: Any = None
    try:
        while here.poll(WAITING_SECONDS):
            last = here.recv()
            if isinstance(last, dict):
                return last, ""
        return {}, f"waits without end: seed {seed}, round {start}, mutation {last}"
    except EOFError:
        process.join()
        how = "hangs" if process.exitcode == -signal.SIGXCPU else f"crashes with exit code {process.exitcode}"
        return {}, f"{how}: seed {seed}, round {start}, mutation {last}"
    finally:
        process.kill()
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(SOUND))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    kinds = [kind for kind in given.kinds if sound(kind) is not None]
    end, start = time.monotonic() + 60 * given.minutes, 0
    totals: dict[str, dict[str, Any]] = {kind: {"mutations": 0, "slowest": 0.0, "bad": [], "corpus": {}} for kind in kinds}
    while time.monotonic() < end:
        for kind in kinds:
            own = totals[kind]
            found, bad = round_of(kind, given.seed, start, AT_A_TIME)
            own["mutations"] += AT_A_TIME if found else 0
            own["slowest"] = max(own["slowest"], round(found.get("slowest", 0.0), 2))
            own["bad"] += [bad] if bad else [] if found["sound"] else ["the sound file is read otherwise"]
            for answer, recipe in found.get("found", {}).items():
                if len(recipe) < len(own["corpus"].get(answer, recipe * 2 or [0])):
                    own["corpus"][answer] = recipe
            given.out.write_text(json.dumps(totals, indent=1))
            if time.monotonic() > end:
                break
        start += AT_A_TIME
    for kind, own in totals.items():
        print(
            f"{kind}: {own['mutations']} mutations, {len(own['corpus'])} kinds of answers, slowest {own['slowest']} s; {own['bad'] or 'nothing bad'}"
        )
    return any(own["bad"] for own in totals.values())


if __name__ == "__main__":
    sys.exit(main())
