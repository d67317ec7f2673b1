"""Solvers on more rows than memory holds. One JSON line for each measurement; each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/solver_scale.py draw --rows 1000000 --classes 1000 --folder big
    OMP_NUM_THREADS=1 python benchmarks/solver_scale.py run --folder big --methods joint-gmm gda-em --out benchmarks/results/solver_scale.jsonl
    OMP_NUM_THREADS=1 python benchmarks/solver_scale.py agree --rows 50000 --classes 1000 --out benchmarks/results/solver_scale.jsonl
    python benchmarks/solver_scale.py plot --out benchmarks/results/solver_scale.jsonl --svg docs/solver_scale.svg

``draw`` writes a feature folder of 512 columns: classes are children of a tenth as many parents, so that siblings are confused; their frequencies are
uneven, and their texts are noisy. ``run`` is ``finelens adapt`` and ``finelens predict`` of that folder as two commands, whose resident size is read
every second. ``agree`` fits each solver to the same rows in memory and by passes, and compares what both fitted solvers answer for all of them.
``sample`` fits each by passes to 32,768 of the rows and to all, as rounds on parts of the rows could spare no more. With ``--second`` the same
photographs have features of a second encoder, 384 columns that know the classes and not their parents: ``draw`` writes them as well, ``run`` gives
them with ``--extra``, ``agree`` as a second feature space. ``plot`` draws the last sizes of each method in ``--out`` over time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from finelens.core.schemas import SCHEMA_VERSION
from finelens.feature_store.files import FORMAT
from finelens.feature_store.folder import SHARD, FolderWriter
from finelens.protocol import ImageRecord, Support
from finelens.solvers import SusX

WIDTH, SCALE, SECOND = 512, 50.0, 384
SHOTS = 4
METHODS = ["consensus", "joint-gmm", "gda-em", "tip-adapter"]
VIEWS = ("consensus", "joint-gmm", "self-adaptive-ot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["draw", "run", "agree", "sample", "plot"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("big"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sample", type=int, help="Rows that one number of all is taken from.  [default: the solvers' own]")
    parser.add_argument("--second", action="store_true", help="with a second encoder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    {"draw": draw, "run": run, "agree": agree, "sample": agree, "plot": plot}[given.what](given)


def centres(classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class centres (C, D), their noisy texts (C, D) and frequencies (C,)."""
    generator = torch.Generator().manual_seed(0)
    parents = F.normalize(torch.randn(max(2, classes // 10), WIDTH, generator=generator), dim=1)
    children = F.normalize(torch.randn(classes, WIDTH, generator=generator), dim=1)
    own = F.normalize(parents[torch.arange(classes) % len(parents)] + 0.7 * children, dim=1)
    texts = F.normalize(own + F.normalize(torch.randn(classes, WIDTH, generator=generator), dim=1), dim=1)
    frequent = (torch.randperm(classes, generator=generator) + classes / 10).double() ** -0.5
    return own, texts, frequent / frequent.sum()


def drawn(classes: int, rows: range, size: int = SHARD) -> Iterator[tuple[range, torch.Tensor, torch.Tensor]]:
    """Unit rows (n, D) and their classes (n,), shard by shard; the same for a row whatever comes before it."""
    own, _, frequent = centres(classes)
    for start in range(rows.start, rows.stop, size):
        part = range(start, min(start + size, rows.stop))
        generator = torch.Generator().manual_seed(1 + start)
        labels = torch.multinomial(frequent, len(part), replacement=True, generator=generator)
        noise = 2.5 * WIDTH**-0.5 * torch.randn(len(part), WIDTH, generator=generator)
        yield part, F.normalize(own[labels] + noise, dim=1), labels


def of_second(classes: int, start: int, labels: torch.Tensor) -> torch.Tensor:
    """Unit rows (n, D) of the second encoder, of the photographs that :func:`drawn` began at ``start``."""
    own = F.normalize(torch.randn(classes, SECOND, generator=torch.Generator().manual_seed(2)), dim=1)
    noise = torch.randn(len(labels), SECOND, generator=torch.Generator().manual_seed(1 << 40 | start))
    return F.normalize(own[labels] + 2.5 * SECOND**-0.5 * noise, dim=1)


def draw(given: argparse.Namespace) -> None:
    given.folder.mkdir(parents=True, exist_ok=True)
    _, texts, _ = centres(given.classes)
    np.save(given.folder / "texts.npy", texts.numpy())
    (given.folder / "classes.txt").write_text("".join(f"kind {c}\n" for c in range(given.classes)))
    metadata = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION), "logit_scale": str(SCALE)}
    for name in ("rows", "second") if given.second else ("rows",):
        # Photographs of several encoders are matched by content, which only files that name a tower have.
        about = metadata | ({"tower": name} if given.second else {})
        with FolderWriter(given.folder / f"{name}.features", about, f"{given.rows} {given.classes}") as writer:
            for part, rows, labels in drawn(given.classes, range(writer.done, given.rows)):
                own = rows if name == "rows" else of_second(given.classes, part.start, labels)
                # A pooled token of one column, which no method is told to look at.
                records = [ImageRecord(f"{i // 1000:04d}/{i:07d}.jpg", "ok", "", f"{i:064x}") for i in part]
                writer.add(records, {"global": own, "cls": own[:, :1]})
            writer.finish()


def run(given: argparse.Namespace) -> None:
    """``adapt`` and ``predict`` by the command line, watched."""
    for method in given.methods:
        out = given.folder / f"run-{method}"
        second = ["--extra", str(given.folder / "second.features")] if given.second else []
        options = second or (["--set", "method.extra=[]"] if method in VIEWS else [])
        verb = "zero-shot" if method == "zero-shot" else "adapt"
        common = ["--classes", str(given.folder / "classes.txt"), "--prototypes", str(given.folder / "texts.npy"), "--method", method, "--overwrite"]
        rows = str(given.folder / "rows.features")
        adapt = [sys.executable, "-m", "finelens", verb, rows, *common, *options, "--out", str(out)]
        predict = [sys.executable, "-m", "finelens", "predict", str(out), rows, "--csv", str(given.folder / f"{method}.csv"), "--overwrite", *second]
        for step, command in (("adapt", adapt), ("predict", predict)):
            about = {"step": step, "method": method, "rows": given.rows, "classes": given.classes, **({"second": SECOND} if second else {})}
            write(given.out, {**about, **watched(command)})


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command; its resident size in MB, anonymous and of mapped files, every few seconds, and the processor time that it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command)
    seen: list[list[float]] = []
    pause = 1.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        size = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("VmRSS", "RssAnon"))}
        if size:
            seen.append([round(time.monotonic() - start), size["VmRSS"] // 1024, size["RssAnon"] // 1024])
        time.sleep(pause)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    every = max(1, len(seen) // 200)
    return {
        "seconds": round(time.monotonic() - start),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "megabytes_peak": max(size for _, size, _ in seen),
        "resident": [max(seen[i : i + every], key=lambda point: point[1]) for i in range(0, len(seen), every)],
    }


def agree(given: argparse.Namespace) -> None:
    for method in given.methods:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(compared, (method, given.rows, given.classes, given.sample, given.second, given.what))
        about = {"step": given.what, "method": method, "rows": given.rows, "classes": given.classes, "sample": given.sample}
        write(given.out, {**about, **({"second": SECOND} if given.second else {}), **found})


def compared(method: str, rows: int, classes: int, sample: int | None, second: bool, what: str) -> dict[str, Any]:
    from finelens.solvers import SOLVERS
    from finelens.solvers import rows as by_passes
    from finelens.solvers.neighbours import evenly_spread

    if sample is not None:
        by_passes.SAMPLE = sample
    parts = list(drawn(classes, range(rows)))
    x, labels = torch.cat([part for _, part, _ in parts]), torch.cat([own for *_, own in parts])
    _, texts, _ = centres(classes)
    solver = SOLVERS[method]
    if issubclass(solver, SusX):
        solver = partial(solver, support=outside(classes, rows, texts))
    views = [x, torch.cat([of_second(classes, part.start, own) for part, _, own in parts])] if second else [x]
    return compare(solver, views, texts, labels, evenly_spread(rows, by_passes.SAMPLE, x.device) if what == "sample" else None)


def outside(classes: int, rows: int, texts: torch.Tensor) -> Support:
    """A support set: further images, ``SHOTS`` a class on average, and captions as noisy as the texts of the classes."""
    _, features, labels = next(drawn(classes, range(rows, rows + SHOTS * classes), SHOTS * classes))
    noise = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(0))
    return Support(features, labels, F.normalize(texts[labels] + F.normalize(noise, dim=1), dim=1))


def compare(solver: Any, views: list[torch.Tensor], texts: torch.Tensor, labels: torch.Tensor, part: torch.Tensor | None) -> dict[str, Any]:
    """A solver fitted in memory, or to ``part`` of the rows where that is given, and to all by passes."""
    from finelens.solvers.rows import TensorRows

    spent, answers = [], []
    x = views[0]
    parts = [[view[start : start + 2048] for view in views] if len(views) > 1 else x[start : start + 2048] for start in range(0, len(x), 2048)]
    first = (views if len(views) > 1 else x) if part is None else TensorRows(*(view[part] for view in views))
    for source in (first, TensorRows(*views)):
        start = time.process_time()
        fitted = solver().fit(source, prototypes=texts, logit_scale=SCALE)
        spent.append(round(time.process_time() - start, 1))
        answers.append(torch.cat([fitted.predict_log_proba(part).argmax(1) for part in parts]))
    text = torch.cat([(part @ texts.T).argmax(1) for part in x.split(2048)])
    right = [float((own == labels).double().mean()) for own in (text, *answers)]
    return {
        "agreement": round(float((answers[0] == answers[1]).double().mean()), 5),
        "moved_from_text": round(float((answers[0] != text).double().mean()), 4),
        f"accuracy_text_{'memory' if part is None else 'part'}_passes": [round(value, 4) for value in right],
        f"cpu_seconds_{'memory' if part is None else 'part'}_passes": spent,
    }


def plot(given: argparse.Namespace) -> None:
    rows = {(row["method"], row["step"]): row for row in map(json.loads, given.out.read_text().splitlines()) if "resident" in row}
    if not rows:
        raise SystemExit(f"{given.out} has no row of a run")
    width, height, left, top = 640, 260, 60, 20
    longest = max(row["resident"][-1][0] for row in rows.values()) or 1
    most = -(-max(row["megabytes_peak"] for row in rows.values()) // 1000) * 1000
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 150} {top + height + 40}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for megabytes in range(0, most + 1, 1000):
        y = top + height * (1 - megabytes / most)
        lines.append(
            f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/><text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{megabytes / 1000:g} GB</text>'
        )
    for place, ((method, step), row) in enumerate(rows.items()):
        colour = ["#1b6ca8", "#b3541e", "#4b7f3f", "#7a4b8f", "#555", "#a88a00"][place % 6]
        points = " ".join(f"{left + width * at / longest:.1f},{top + height * (1 - size / most):.1f}" for at, size, _ in row["resident"])
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        lines.append(f'<text x="{left + width + 8}" y="{top + 14 + 18 * place}" fill="{colour}">{step} {method}</text>')
    lines.append(f'<text x="{left + width}" y="{top + height + 24}" text-anchor="end">{longest / 60:.0f} minutes</text></svg>')
    given.svg.write_text("\n".join(lines) + "\n")


def write(out: Path | None, row: dict[str, Any]) -> None:
    row["threads"] = torch.get_num_threads()
    row["load"] = round(os.getloadavg()[0], 1)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "resident"}), flush=True)


if __name__ == "__main__":
    main()
