"""Do the label-free signals tell the truth? Verdict against measured gain, and estimated against true confusions, one JSON line per run.

    python benchmarks/signal_features.py DATA FEATURES --sets pets37 cifar10
    python benchmarks/signals.py FEATURES --sets pets37 cifar10 --out benchmarks/results/signals.jsonl
    python benchmarks/signals.py --runs RUNS --out benchmarks/results/signals.jsonl
    python benchmarks/signals.py --table benchmarks/results/signals.jsonl

A run is a method on features: fitted on the train part without labels, where its signals and verdict are taken; its gain over zero-shot with
templates and its confusions are measured on the test part. Besides each method's own texts, there are starts that ought to be warned of: descriptions
of half of the classes swapped, descriptions with noise, and predictions collapsed onto one class. Finished lines are skipped.

RUNS is a folder of finished run folders of any method, training ones too, each with signals.json and the evaluation.json that
``finelens report RUN --labels ... --test ...`` leaves: their verdicts join the table, with the gain that was measured there as the truth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from finelens.core.schemas import VERDICTS
from finelens.evaluation.collapse import collapse_warning
from finelens.evaluation.metrics import paired_bootstrap
from finelens.evaluation.signals import Signals, signals_of
from finelens.evaluation.verdict import COLLAPSE, verdict
from finelens.evaluation.weak_start import Start
from finelens.methods.registry import find_method
from finelens.reporting.record import read_run
from finelens.runs.folder import RunFolder
from finelens.storage.tensors import load_tensors, save_tensors

SOLVERS = ("stata", "gda-em", "transclip", "ot", "zlap")
STARTS = ("descriptions", "templates", "swapped", "noisy")
TOP = 10
NOTHING = "no difference shown"
# What a verdict is worth by the truth, for choosing thresholds.
VALUE = {
    ("improved", "better"): 1,
    ("improved", NOTHING): -0.5,
    ("improved", "worse"): -2,
    ("do not use", "worse"): 1,
    ("do not use", NOTHING): -0.5,
    ("do not use", "better"): -2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=["cupl", *SOLVERS, "collapse"])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if not given.table and (given.out is None or (given.features is None) == (given.runs is None)):
        parser.error("give FEATURES --sets ... --out FILE, --runs FOLDER --out FILE, or --table FILE")
    if given.table:
        show([json.loads(line) for line in given.table.read_text().splitlines()])
        return
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    finished = {(row["set"], row["method"], row["start"]) for row in done}
    if given.runs:
        for row in finished_runs(given.runs):
            if (row["set"], row["method"], row["start"]) not in finished:
                append(given.out, row)
        return
    for name in given.sets:
        data = load_tensors(given.features / f"{name}.safetensors")
        for method, start in jobs(given.methods):
            if (name, method, start) not in finished:
                append(given.out, {"set": name, "method": method, "start": start, **run(data, method, start, given.features / name)})
        print(name, flush=True)


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({**row, "command": " ".join(["benchmarks/signals.py", *sys.argv[2:]])}) + "\n")


def finished_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each run folder below a folder, by name; one that was not evaluated is named and left out."""
    for signals in sorted(folder.rglob("signals.json")):
        with RunFolder.open(signals.parent, lock=False) as opened:
            record = read_run(opened)
        if record.evaluation is None:
            print(f"{signals.parent} has no evaluation.json: finelens report {signals.parent} --labels folders --test FOLDER", file=sys.stderr)
            continue
        photos = Path(record.config.photos)
        name = photos.parent.name if photos.name in ("train", "test") else photos.name
        alarm = collapse_warning(record.rows, record.classes)
        found = record.measured.signals
        yield {
            "set": name,
            "method": record.config.method,
            "start": f"run {signals.parent.relative_to(folder).as_posix()}",
            **judged(found, record.evaluation["difference_interval"], [] if alarm is None else [alarm]),
            "accuracy": round(record.evaluation["accuracy"], 4),
            "zero_shot": round(record.evaluation["zero_shot_accuracy"], 4),
        }


def judged(found: Signals, interval: Sequence[float], alarms: Sequence[str] = ()) -> dict[str, Any]:
    """Verdict and truth of a run."""
    low, high = interval
    return {
        "gain_interval": [round(low, 4), round(high, 4)],
        "truth": "better" if low > 0 else "worse" if high < 0 else NOTHING,
        "verdict": verdict(found, alarms).level,
        "verdict_without_descriptions": verdict(replace(found, text_agreement=None, descriptions_information=None), alarms).level,
        "signals": {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(found).items()},
    }


def jobs(methods: list[str]) -> Iterator[tuple[str, str]]:
    for method in methods:
        for start in ("descriptions",) if method == "collapse" else STARTS:
            if (method, start) != ("cupl", "templates"):
                yield method, start


def run(data: dict[str, Tensor], method: str, start: str, kept: Path) -> dict[str, Any]:
    scale, truth = float(data["scale"]), data["truth"]
    first = {part: scale * data[part] @ data["templates"].T for part in ("train", "test")}
    logits = answers(data, method, start, kept)
    if method == "collapse":
        logits = collapsed(logits)
    described = scale * data["train"] @ start_of(data, start if start != "templates" else "descriptions").T
    found = signals_of(logits["train"].softmax(1), first["train"].softmax(1), described)
    right, before = (logits["test"].argmax(1) == truth).numpy(), (first["test"].argmax(1) == truth).numpy()
    return {
        "accuracy": round(float(right.mean()), 4),
        "zero_shot": round(float(before.mean()), 4),
        **judged(found, paired_bootstrap(right, before)),
        "precision_at_10": precisions(data, logits["test"], first["test"], truth),
    }


def start_of(data: dict[str, Tensor], start: str) -> Tensor:
    descriptions, generator = data["descriptions"], torch.Generator().manual_seed(0)
    if start == "swapped":
        order, chosen = torch.arange(len(descriptions)), torch.randperm(len(descriptions), generator=generator)[: max(2, len(descriptions) // 2)]
        order[chosen] = chosen.roll(1)
        return descriptions[order]
    if start == "noisy":
        torch.randperm(len(descriptions), generator=generator)
        return F.normalize(descriptions + 0.7 * F.normalize(torch.randn(descriptions.shape, generator=generator), dim=1), dim=1)
    return data[start]


def answers(data: dict[str, Tensor], method: str, start: str, folder: Path) -> dict[str, Tensor]:
    """Scores (N, C) of both parts; those of a solver are kept in a folder."""
    head, scale = start_of(data, start), float(data["scale"])
    if method == "cupl":
        return {part: scale * data[part] @ head.T for part in ("train", "test")}
    name = "ot" if method == "collapse" else method
    path = folder / f"{name}-{start}.safetensors"
    if path.exists():
        return load_tensors(path)
    engine: Any = SimpleNamespace(device=torch.device("cpu"))
    heads: Any = SimpleNamespace(descriptions=head, templates=head)
    solver = find_method(name).build(engine, heads, find_method(name).config_class(), None, 0).solver
    solver.fit(data["train_centred"], prototypes=head, logit_scale=scale)
    scores = {part: solver.predict_log_proba(data[f"{part}_centred"]).float() for part in ("train", "test")}
    folder.mkdir(exist_ok=True)
    save_tensors(path, scores)
    return scores


def collapsed(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scores of the largest class raised until it takes 60 % of the train part."""
    train = logits["train"]
    winner = int(train.argmax(1).mode().values)
    lift = (train.amax(1) - train[:, winner]).quantile(0.6) + 1e-3
    shift = F.one_hot(torch.tensor(winner), train.shape[1]) * lift
    return {part: values + shift for part, values in logits.items()}


def precisions(data: dict[str, Tensor], logits: Tensor, first: Tensor, truth: Tensor) -> dict[str, float]:
    """Of the ten pairs that each estimate names, the share that is among the ten most frequent true confusions (ties with the tenth count)."""
    p, z, c = logits.softmax(1).double(), first.softmax(1).double(), logits.shape[1]
    wrong = torch.bincount(truth * c + logits.argmax(1), minlength=c * c).view(c, c)
    wrong = (wrong + wrong.T).triu(1)
    least = max(1, int(wrong.flatten().topk(min(TOP, c * c)).values[-1]))
    true = wrong >= least
    second = p.topk(2).indices
    together = torch.zeros(c, c, dtype=torch.float64).index_put_(
        (second[:, 0], second[:, 1]), torch.ones(len(p), dtype=torch.float64), accumulate=True
    )
    unit = F.normalize(data["templates"].double(), dim=1)
    words = F.normalize(data["descriptions"].double(), dim=1)
    means = F.normalize(p.T @ data["test_centred"].double(), dim=1)
    flat = (logits / 5).softmax(1).double()
    cross = p.T @ z
    estimates: dict[str, Callable[[], Tensor]] = {
        "shared mass": lambda: p.T @ p,
        "shared mass, both models": lambda: cross + cross.T,
        "shared mass, zero-shot": lambda: z.T @ z,
        "shared mass, softened": lambda: flat.T @ flat,
        "first and second": lambda: together + together.T,
        "text similarity": lambda: unit @ unit.T,
        "description similarity": lambda: words @ words.T,
        "class means": lambda: means @ means.T,
        "mass x text": lambda: (cross + cross.T) * (unit @ unit.T).clamp_min(0),
        "mass x means": lambda: (cross + cross.T) * (means @ means.T).clamp_min(0),
    }
    rows, columns = torch.triu_indices(c, c, offset=1)
    result = {}
    for name, estimate in estimates.items():
        best = estimate()[rows, columns].topk(min(TOP, len(rows))).indices
        result[name] = round(true[rows, columns][best].double().mean().item(), 3)
    result["chance"] = round(true[rows, columns].double().mean().item(), 3)
    return result


def left_out(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Verdicts on each set by thresholds (improved, do not use, texts) chosen on the other sets alone, in a coarse grid."""
    grid = list(itertools.product((0.65, 0.7, 0.75, 0.8, 0.85), (0.45, 0.5, 0.55, 0.6, 0.65), (0, 0.6, 0.65, 0.7, 0.75)))
    counts: Counter[tuple[str, str]] = Counter()
    for name in dict.fromkeys(row["set"] for row in rows):
        others = [row for row in rows if row["set"] != name]
        best = max(grid, key=lambda thresholds: sum(VALUE.get((level(row, *thresholds), row["truth"]), 0) for row in others))
        counts.update((level(row, *best), row["truth"]) for row in rows if row["set"] == name)
    return counts


def level(row: dict[str, Any], kept: float, lost: float, texts: float) -> str:
    found = row["signals"]
    if found["spread"] < COLLAPSE * found["spread_zero_shot"]:
        return "do not use"
    start = Start(found["images"], found["templates_information"], found["descriptions_information"])
    if not start.weak and found["kept"] < lost:
        return "do not use"
    doubtful = (found["text_agreement"] is not None and found["text_agreement"] < texts) or start.weak
    return "unclear" if doubtful or found["kept"] < kept else "improved"


def rejudged(row: dict[str, Any], *, described: bool = True) -> str:
    """The verdict of today on the signals of a row; that of a finished run, whose alarms are not kept, stays."""
    if row["start"].startswith("run "):
        return str(row["verdict" if described else "verdict_without_descriptions"])
    found = Signals(**row["signals"])
    return verdict(found if described else replace(found, text_agreement=None, descriptions_information=None)).level


def area(rows: list[dict[str, Any]], values: np.ndarray, truth: str) -> str:
    hits = [row["truth"] == truth for row in rows]
    return f"{roc_auc_score(hits, values):.2f}" if len(set(hits)) == 2 else "-"


def show(rows: list[dict[str, Any]]) -> None:
    own = [row for row in rows if row["start"].startswith(("descriptions", "templates", "run ")) and row["method"] != "collapse"]
    tables = {
        "verdict": Counter((rejudged(row), row["truth"]) for row in rows),
        "own texts only": Counter((rejudged(row), row["truth"]) for row in own),
        "without descriptions": Counter((rejudged(row, described=False), row["truth"]) for row in rows),
        "thresholds from the other sets": left_out(rows),
    }
    for key, counts in tables.items():
        print(f"| {key} | better | no difference shown | worse |\n|---|---|---|---|")
        for level in VERDICTS:
            print(f"| {level} | " + " | ".join(str(counts[level, truth]) for truth in ("better", NOTHING, "worse")) + " |")
        print()
    print("| signal | better | worse |\n|---|---|---|")
    for name in (
        "kept",
        "agreement",
        "text_agreement",
        "templates_information",
        "descriptions_information",
        "confidence",
        "margin",
        "spread",
        "unused",
    ):
        having = [row for row in rows if row["signals"][name] is not None]
        values = np.array([row["signals"][name] for row in having])
        print(f"| {name} | {area(having, values, 'better')} | {area(having, -values, 'worse')} |")
    print()
    own = [row for row in own if "precision_at_10" in row]
    if not own:
        return
    sets = list(dict.fromkeys(row["set"] for row in own))
    print("| estimate | " + " | ".join(sets) + " | mean |\n|---" * 1 + "|---" * (len(sets) + 1) + "|")
    for name in own[0]["precision_at_10"]:
        values = [[row["precision_at_10"][name] for row in own if row["set"] == one] for one in sets]
        means = [sum(v) / len(v) for v in values]
        print(f"| {name} | " + " | ".join(f"{m:.2f}" for m in means) + f" | {sum(means) / len(means):.2f} |")


if __name__ == "__main__":
    main()
