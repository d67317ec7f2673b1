"""Accuracy on new photographs against answers: whom to ask, what the answers teach, and how far their estimate of accuracy can be believed.

    python benchmarks/looking.py DATA --sets pets37 cifar10 dtd10 --draws 0 1 2 3 4 --out benchmarks/results/looking.jsonl
    python benchmarks/looking.py DATA --sets pets37 --methods --estimates 20 --out benchmarks/results/estimates.jsonl
    python benchmarks/looking.py DATA --sets pets37 --methods --rounds 5 --out benchmarks/results/rounds.jsonl
    python benchmarks/looking.py --table benchmarks/results/looking.jsonl
    python benchmarks/looking.py --areas benchmarks/results/looking.jsonl
    python benchmarks/looking.py --coverage benchmarks/results/estimates.jsonl
    python benchmarks/looking.py --gains benchmarks/results/estimates.jsonl
    python benchmarks/looking.py --stops benchmarks/results/rounds.jsonl
    python benchmarks/looking.py --figure benchmarks/results/looking.jsonl --svg docs/looking.svg

DATA holds one folder per set, as for ``finelens bench``. A draw is nine tenths of ``train/``, at random; C, 2C and 4C photographs of it are answered,
for C classes, by folder name and all at once; accuracy is that on all of ``test/``. Plans pair an order of asking with a method. Answers change
nothing of what ``consensus`` makes without them, so that is made once a draw. One JSON line per run, resumable.

An estimate is made from answers in the order ``worth``, the answers tested by leaving a tenth of them out, with another random order each time; it
covers when its 90 % interval holds the accuracy on the photographs of the draw that were not asked about. ``--rounds`` asks ten at a time and
teaches after each round, as the served sheet does: answers are tested in the same way, and the stop rule says what ten more may gain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import data_command
from curves import area, panels
from hint_value import QUIET, World, accuracy
from orders import k_centre, probcover, typiclust
from torch import Tensor

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.sets.data import read_folder
from finelens.evaluation.answered import answers_of_run
from finelens.evaluation.prequential import believed_accuracy, drawn_answers, progress, random_order, regained
from finelens.images.randomness import generator, permutation
from finelens.protocol import FeatureRows, TargetFeatures
from finelens.reporting.review.worth import questions
from finelens.solvers.asking import ask
from finelens.solvers.columns import centred_views
from finelens.solvers.known import Known
from finelens.solvers.taught import Taught, left_out, spoken_for, steady, teach
from finelens.storage.cache import cached_tensors

TIMES = (1, 2, 4)
# Most rounds, and questions of one.
ROUNDS, ROUND = 10, 10
# Orders of asking with the method of the second round; the last is the flow of before.
ORDERS = ("worth", "worth, none drawn", "random", "doubt", "k-centre", "probcover", "typiclust")
OTHERS = (("worth, none drawn", "joint-gmm"), ("doubt", "stata"))
PLANS = (("none", "consensus"), *((order, "consensus") for order in ORDERS), *OTHERS)
KEY = ("set", "draw", "order", "method", "times")
NOBODY = torch.zeros(0, dtype=torch.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="*", default=["consensus"], help="consensus, joint-gmm, stata")
    parser.add_argument("--orders", nargs="*", default=["none", *ORDERS], help="orders of asking")
    parser.add_argument("--estimates", type=int, default=0, help="estimates of accuracy to make for each draw and number of answers")
    parser.add_argument("--rounds", type=int, default=0, help="reviews in rounds to make for each draw")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    parser.add_argument("--areas", type=Path, help="print the area under the curves of a file of results")
    parser.add_argument("--coverage", type=Path, help="print how often the intervals of a file cover")
    parser.add_argument("--gains", type=Path, help="the same of the gain over the unadapted model, and how often chance does not explain it")
    parser.add_argument("--stops", type=Path, help="print what a file says of the stop rule")
    parser.add_argument("--figure", type=Path, help="draw the curves of a file to --svg")
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    for path, show in ((given.table, table), (given.areas, areas), (given.coverage, coverage), (given.gains, gains), (given.stops, stops)):
        if path is not None:
            print(show(read(path)))
            return
    if given.figure is not None:
        given.svg.write_text(figure(read(given.figure)))
        return
    command = data_command()
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, QUIET)
        for draw in given.draws:
            done = {tuple(row.get(key) for key in (*KEY, "seed")) for row in read(given.out)}
            for row in rows(context, draw, given.methods, given.orders, given.estimates, given.rounds, done):
                with given.out.open("a") as file:
                    file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")
                print(json.dumps(row), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Learner:
    """``consensus`` on one draw: made once without answers, which are taught afterwards."""

    def __init__(self, context: Context, draw: int) -> None:
        images = len(context.pool("train").truth().labels)
        self.world = World(context, "inductive", "consensus", round(0.9 * images), {}, draw)
        self.truth, self.classes = torch.as_tensor(self.world.truth), len(context.data.class_names)
        self.train, self.test = take(self.world.pool.features, self.world.fitted_rows), context.test.features
        self.ids = [self.world.pool.row_digests[row] for row in self.world.fitted_rows]
        state = cached_tensors(["looking, evened text", context.source["checksum"], context.start.texts, str(draw)], self._fit)
        self.looks, self.log_p, self.test_looks, self.test_log_p, self.doubted, size, self.zero_shot = state.values()
        self.size = float(size)
        # The images are fewer than those that the method looks for neighbours among.
        widths = [self.train.global_.shape[1], self.train.cls.shape[1]]
        lessons, new = steady(self.looks, self.looks, widths, rows=torch.arange(len(self.looks))), steady(self.test_looks, self.looks, widths)
        # Cosines and heads are the same in a basis of the photographs' own, which has fewer columns.
        basis = torch.linalg.qr(lessons.T).Q
        self.steady, self.test_steady = lessons @ basis, new @ basis

    def _fit(self) -> dict[str, Tensor]:
        fitted, _ = self.world.run(np.array([], dtype=np.int64))
        task: Any = fitted.model.task
        found = {name: value for part in ("train", "test") for name, value in self._part(task, part).items()}
        doubted = torch.as_tensor(self.world.review_order(fitted))
        # Sorted by name, as they are read back.
        return dict(zip("abcdefg", (*found.values(), doubted, task.solver.sizes_[-1:], fitted.zero_shot_logits.argmax(1)), strict=True))

    def _part(self, task: Any, part: str) -> dict[str, Tensor]:
        features: TargetFeatures = self.train if part == "train" else self.test
        views = task.seen(torch.cat([features.global_, features.cls], 1).as_subclass(FeatureRows))
        x = torch.cat([torch.nn.functional.normalize(view, dim=1) for view in views], 1)
        log_p = task.target_log_proba if part == "train" else task.solver.predict_log_proba(views)
        return {f"{part} looks": centred_views(x, task.solver.centre_, task.solver.widths_.tolist()), f"{part} log_p": log_p.float()}

    def teach(self, rows: Tensor) -> Taught:
        return teach(self.steady, self.log_p, self.known(rows))

    def known(self, rows: Tensor) -> Known:
        return Known(rows, self.truth[rows])

    def right(self, taught: Taught | None) -> np.ndarray:
        """Whether each new photograph is answered rightly."""
        logits = self.test_log_p if taught is None else taught.logits(self.test_steady, self.test_log_p)
        found: np.ndarray = logits.argmax(1).numpy() == self.world.test_truth
        return found

    def asked(self, order: str, draw: int, n: int) -> Tensor:
        """Positions of the photographs that are answered."""
        ours: dict[str, Callable[[], Any]] = {
            "none": lambda: NOBODY,
            "worth": lambda: self.questions(n, 0)[0],
            "worth, none drawn": lambda: ask(self.looks, self.even, NOBODY, n, classes=self.classes).rows,
            "random": lambda: permutation(generator(draw, 0, "hints", "looking"), len(self.truth))[:n],
            "doubt": lambda: self.doubted[:n],
            "k-centre": lambda: k_centre(self.looks.numpy(), n),
            "probcover": lambda: probcover(self.looks.numpy(), n, self.classes),
            "typiclust": lambda: typiclust(self.looks.numpy(), n),
        }
        return torch.as_tensor(ours[order]())

    @property
    def even(self) -> Tensor:
        return torch.ones(len(self.truth))

    def questions(self, n: int, seed: int) -> tuple[Tensor, list[int]]:
        """Rows, and the random order."""
        order = random_order(self.ids, seed)
        found, _ = questions(self.looks, self.even, NOBODY, order, n, classes=self.classes)
        return found.rows, order


def rows(
    context: Context, draw: int, methods: list[str], orders: list[str], estimates: int, rounds: int, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """One row a run that is not done yet."""
    learner, worlds = Learner(context, draw), {}
    for order, method in PLANS:
        for times in TIMES if order != "none" else (0,):
            key = {"set": context.data.name, "draw": draw, "order": order, "method": method, "times": times}
            if method not in methods or order not in orders or (*key.values(), None) in done:
                continue
            if method == "consensus":
                asked = learner.asked(order, draw, times * learner.classes)
                right = learner.right(learner.teach(asked) if times else None)
            else:
                world = worlds.setdefault(method, World(context, "inductive", method, len(learner.truth), {}, draw))
                if order == "doubt" and not hasattr(world, "doubted"):
                    world.doubted = torch.as_tensor(world.review_order(world.run(np.array([], dtype=np.int64))[0]))
                asked = world.doubted[: times * learner.classes] if order == "doubt" else learner.asked(order, draw, times * learner.classes)
                right = world.run(asked.numpy())[1] == world.test_truth
            named = len(learner.truth[asked].unique())
            yield {
                **key,
                "answers": len(asked),
                "classes": learner.classes,
                "named": named,
                "images": len(learner.truth),
                "accuracy": accuracy(right),
            }
    for seed in range(estimates):
        for times in TIMES:
            key = {"set": context.data.name, "draw": draw, "order": "worth", "method": "consensus", "times": times, "seed": seed}
            # Where most photographs are answered there is nothing to estimate.
            if tuple(key.values()) not in done and times * learner.classes <= len(learner.truth) / 2:
                yield {**key, **estimated(learner, times * learner.classes, seed)}

    for seed in range(rounds):
        key = {"set": context.data.name, "draw": draw, "order": "rounds", "method": "consensus", "times": 0, "seed": seed}
        if tuple(key.values()) not in done:
            yield {**key, "rounds": in_rounds(learner, seed)}


def in_rounds(learner: Learner, seed: int) -> list[dict[str, Any]]:
    """A review in rounds: after each what the answers so far say of the model, and what is true."""
    order, found = random_order(learner.ids, seed), []
    answered, p, models = NOBODY, learner.log_p.exp(), [(0, learner.log_p.argmax(1))]
    while len(answered) < ROUNDS * ROUND and len(answered) + ROUND <= len(learner.truth) / 2:
        asked, _ = questions(learner.looks, 1 - p.amax(1), answered.sort().values, order, ROUND, classes=learner.classes)
        answered = torch.cat([answered, asked.rows])
        taught = learner.teach(answered)
        p = (2 * learner.size * taught.logits(learner.steady, learner.log_p)).softmax(1)
        models.append((len(answered), p.argmax(1)))
        drawn = drawn_answers(order, answered.tolist())
        curve = [(count, believed_accuracy(p, own)) for count, own in models]
        known, random = learner.known(answered), [row in drawn for row in answered.tolist()]
        (guesses, changed), speaks_for = left_out(learner.steady, learner.log_p, known, taught=taught), spoken_for(learner.steady, known)
        told = progress(known.labels, guesses, random, speaks_for, classes=learner.classes, changed=changed, curve=curve, another=ROUND)
        rest = np.delete(np.arange(len(learner.truth)), answered.numpy())
        values = {name: round(100 * getattr(told, name), 2) for name in ("estimate", "low", "high")}
        values["gain"] = None if told.gain is None else round(100 * told.gain, 2)
        true = accuracy((p.argmax(1) == learner.truth).numpy()[rest])
        found.append({"answers": len(answered), **values, "accuracy": true, "new": accuracy(learner.right(taught))})
    return found


def estimated(learner: Learner, n: int, seed: int) -> dict[str, Any]:
    """Estimate of the accuracy from n answers, and the accuracy on the photographs without an answer, and on new ones."""
    rows, order = learner.questions(n, seed)
    taught, known = learner.teach(rows), learner.known(rows)
    drawn = drawn_answers(order, rows.tolist())
    guesses, changed = left_out(learner.steady, learner.log_p, known, taught=taught, seed=seed)
    random = np.array([row in drawn for row in rows.tolist()])
    names, everyone = tuple(map(str, range(learner.classes))), np.ones(len(rows), dtype=bool)
    first, zero_shot = learner.log_p[rows].argmax(1), learner.zero_shot
    speaks_for = spoken_for(learner.steady, known)
    found = answers_of_run(known.labels, first, "", names, zero_shot[rows], guesses, random, speaks_for, everyone, changed=changed)
    rest = np.delete(np.arange(len(learner.truth)), rows.numpy())
    right = taught.logits(learner.steady[rest], learner.log_p[rest]).argmax(1) == learner.truth[rest]
    true = accuracy(right.numpy())
    gained = round(true - accuracy((zero_shot[rest] == learner.truth[rest]).numpy()), 2)
    told: dict[str, Any] = {"told": found.estimate is not None}
    if found.estimate is not None:
        low, high, least, most = (100 * getattr(found, name) for name in ("low", "high", "gain_low", "gain_high"))
        told |= {
            "drawn": found.drawn,
            "regained": round(100 * regained(changed, speaks_for), 2),
            "estimate": 100 * found.estimate,
            "low": low,
            "high": high,
            "covers": low <= true <= high,
        }
        told |= {"gain": 100 * (found.gain or 0.0), "gain low": least, "gain high": most, "gain covers": least <= gained <= most}
    return {"answers": len(rows), **told, "accuracy": true, "new": accuracy(learner.right(taught)), "gained": gained}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: accuracy with C / 2C / 4C answers, the mean over the draws."""
    sets = list(dict.fromkeys(row["set"] for row in found))
    lines = ["| order, method | " + " | ".join([*sets, "mean"]) + " | draws |", "|---" * (len(sets) + 3) + "|"]
    for order, method in PLANS:
        own = [row for row in found if (row["order"], row["method"]) == (order, method) and "seed" not in row]
        if {row["set"] for row in own} != set(sets):
            continue
        times = sorted({row["times"] for row in own})
        means = [[np.mean([row["accuracy"] for row in own if (row["set"], row["times"]) == (name, t)]) for t in times] for name in sets]
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in (*means, np.mean(means, 0))]
        draws = sorted({len({row["draw"] for row in own if row["set"] == name}) for name in sets})
        lines.append(f"| {order}, {method} | " + " | ".join(cells) + f" | {draws[0]}{'' if len(draws) == 1 else f' to {draws[-1]}'} |")
    return "\n".join(lines)


def coverage(found: list[dict[str, Any]]) -> str:
    """Markdown: how often the 90 % interval covers, how wide it is, and what the estimate is off by, in points."""
    asked = [row for row in found if "seed" in row]
    found = [row for row in asked if row.get("told", True)]
    lines = [
        f"{len(found)} of {len(asked)} are told.",
        "",
        "| set | answers | estimates | covers | half its width | off by (mean) | off by (root mean square) |",
        "|---" * 7 + "|",
    ]
    groups = [(name, times) for name in dict.fromkeys(row["set"] for row in found) for times in TIMES]
    for name, times in [*groups, *(("all", times) for times in TIMES), ("all", None)]:
        own = [row for row in found if (name == "all" or row["set"] == name) and times in (None, row["times"])]
        if own:
            off = np.array([row["estimate"] - row["accuracy"] for row in own])
            half = np.mean([(row["high"] - row["low"]) / 2 for row in own])
            what = f"{100 * np.mean([row['covers'] for row in own]):.0f} % | {half:.0f} | {off.mean():+.1f} | {np.sqrt((off**2).mean()):.1f}"
            lines.append(f"| {name} | {'all' if times is None else 'C' if times == 1 else f'{times}C'} | {len(own)} | {what} |")
    return "\n".join(lines)


def gains(found: list[dict[str, Any]]) -> str:
    """Markdown: the gain over the unadapted model by the answers, what it is, and how often its interval decides the verdict, rightly or not."""
    found = [row for row in found if row.get("told", True)]
    lines = ["| set | answers | estimates | gain | told | covers | half its width | better | worse | wrongly |", "|---" * 10 + "|"]
    names = [*dict.fromkeys(row["set"] for row in found), "all"]
    for name, times in [(name, times) for name in names for times in TIMES]:
        own = [row for row in found if name in (row["set"], "all") and row["times"] == times]
        if own:
            true, told = (np.array([row[key] for row in own]) for key in ("gained", "gain"))
            low, high = (np.array([row[f"gain {end}"] for row in own]) for end in ("low", "high"))
            wrong = ((low > 0) & (true <= 0)) | ((high < 0) & (true >= 0))
            cells = (f"{true.mean():+.1f}", f"{told.mean():+.1f}", f"{100 * np.mean([row['gain covers'] for row in own]):.0f} %")
            counts = (f"{(high - low).mean() / 2:.0f}", (low > 0).sum(), (high < 0).sum(), wrong.sum())
            lines.append(" | ".join(map(str, (f"| {name}", "C" if times == 1 else f"{times}C", len(own), *cells, *counts))) + " |")
    return "\n".join(lines)


def stops(found: list[dict[str, Any]]) -> str:
    """Markdown: after each round of ten how the estimate holds, and what ten more answers were expected to gain and did gain on new photographs."""
    lines = ["| answers | reviews | covers | off by (mean) | ten more: expected | ten more: gained | told to stop |", "|---" * 7 + "|"]
    reviews = [row["rounds"] for row in found if "rounds" in row]
    for i in range(max(map(len, reviews)) - 1):
        own = [(review[i], review[i + 1]) for review in reviews if len(review) > i + 1]
        now = [one for one, _ in own]
        covers = 100 * np.mean([one["low"] <= one["accuracy"] <= one["high"] for one in now])
        off = np.mean([one["estimate"] - one["accuracy"] for one in now])
        told = [one["gain"] for one in now if one["gain"] is not None] or [np.nan]
        real, stop = np.mean([after["new"] - one["new"] for one, after in own]), np.mean(np.array(told) < 1)
        expected = "" if np.isnan(told).any() else f"{np.mean(told):.1f}"
        lines.append(f"| {now[0]['answers']} | {len(own)} | {covers:.0f} % | {off:+.1f} | {expected} | {real:+.1f} | {100 * stop:.0f} % |")
    return "\n".join(lines)


def curves(found: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Mean accuracy by set, plan and answers over classes; every curve begins at the default method without answers."""
    result: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in dict.fromkeys(row["set"] for row in found):
        own = [row for row in found if row["set"] == name and "seed" not in row]
        for order, method in PLANS[1:]:
            draws = {row["draw"] for row in own if (row["order"], row["method"]) == (order, method)}
            points = []
            for times in (0, *TIMES):
                plan = ("none", "consensus") if not times else (order, method)
                values = [row["accuracy"] for row in own if (row["order"], row["method"], row["times"]) == (*plan, times) and row["draw"] in draws]
                points += [(float(times), float(np.mean(values)))] if values else []
            if len(points) == 1 + len(TIMES):
                result.setdefault(name, {})[f"{order}, {method}"] = points
    return result


def figure(found: list[dict[str, Any]]) -> str:
    """The curves as SVG."""
    return panels(curves(found))


def areas(found: list[dict[str, Any]]) -> str:
    """Markdown: area under each curve, as the mean accuracy over 0 to 4C answers."""
    drawn = curves(found)
    plans = [f"{order}, {method}" for order, method in PLANS[1:]]
    lines = ["| order, method | " + " | ".join([*drawn, "mean"]) + " |", "|---" * (len(drawn) + 2) + "|"]
    for plan in plans:
        if all(plan in own for own in drawn.values()):
            values = [area(own[plan]) for own in drawn.values()]
            lines.append(f"| {plan} | " + " | ".join(f"{value:.1f}" for value in (*values, np.mean(values))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
