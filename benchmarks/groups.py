"""Points per look: groups of photographs named at once against single photographs; one JSON line per run, resumable.

    python benchmarks/groups.py DATA --sets pets37 cifar10 dtd10 --draws 0 1 2 --out benchmarks/results/groups.jsonl
    python benchmarks/groups.py --table benchmarks/results/groups.jsonl

DATA, draws and scores are those of ``looking.py``: C, 2C and 4C looks for C classes at nine tenths of ``train/``, accuracy on all of ``test/``. The
looks up to C, 2C and 4C are chosen at once each. ``sheet`` is what the served page does: groups, and every fifth look a single photograph that is
drawn at random. The person names a group after the class that most of it has and takes out the others, which may be in another group later; where the
photograph that the group is around was taken out, it is asked alone next time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command
from looking import QUIET
from torch import Tensor

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.sets.data import read_folder
from finelens.evaluation.prequential import ONE_IN, believed_accuracy, drawn_answers, progress, random_order
from finelens.images.randomness import generator, permutation
from finelens.solvers.asking import ask
from finelens.solvers.columns import centred_views
from finelens.solvers.groups import group_around
from finelens.solvers.known import Known
from finelens.solvers.learner import Learner
from finelens.solvers.taught import left_out, spoken_for, steady, teach

TIMES = (1, 2, 4)
# As on the sheet.
LEAST = 4
PLANS = ("single", "groups", "sheet")
KEY = ("set", "draw", "plan", "times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    given = parser.parse_args()
    if given.table is not None:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    command = data_command()
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, QUIET)
        for draw in given.draws:
            lines = given.out.read_text().splitlines() if given.out.exists() else []
            for row in rows(context, draw, given.plans, {tuple(json.loads(line)[key] for key in KEY) for line in lines}):
                with given.out.open("a") as file:
                    file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")
                print(json.dumps(row), flush=True)


def rows(context: Context, draw: int, plans: list[str], done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """One row a plan and budget that is not done yet."""
    name, classes = context.data.name, len(context.data.class_names)
    if all((name, draw, plan, times) in done for plan in plans for times in TIMES):
        return
    world = World(context, draw)
    yield from ([] if (name, draw, "none", 0) in done else [{"set": name, "draw": draw, "plan": "none", "times": 0, "accuracy": world.score({})}])
    for plan in plans:
        for looks, answers, groups, told in world.looked(plan, [times * classes for times in TIMES]):
            if (name, draw, plan, looks // classes) not in done:
                row = {"set": name, "draw": draw, "plan": plan, "times": looks // classes, "looks": looks, "answers": len(answers), "groups": groups}
                yield {**row, "named": len(set(answers.values())), "accuracy": world.score(answers), **told}


class World:
    """A draw of a set, and the learner of the sheet."""

    def __init__(self, context: Context, draw: int) -> None:
        pool = context.pool("train")
        labels = pool.truth().labels
        order = permutation(generator(draw, 0, "images", "hint value"), len(labels))
        rows = np.sort(order[: round(0.9 * len(labels))])
        self.truth, self.test_truth = labels[rows], context.test.truth().labels
        engine = context.start.fresh_engine()
        prototypes, test = context.heads(context.data.class_names).descriptions, context.test.features
        fitted = engine.centre(take(pool.features, rows))
        new = [F.normalize(engine.backbone.project(test.cls), dim=-1) if engine.backbone.fitted_state() else test.global_, test.cls]
        self.classes, self.order = len(prototypes), random_order([str(row) for row in rows.tolist()])
        self.learner = Learner([fitted.global_, fitted.cls], prototypes, engine.backbone.logit_scale)
        solver = self.learner.solver
        assert solver is not None
        self.new_log_p = solver.predict_log_proba(new)
        widths = solver.widths_.tolist()
        seen = centred_views(torch.cat([F.normalize(view, dim=1) for view in new], 1), solver.centre_, widths)
        # Cosines and heads are the same in a basis of the photographs' own, which has fewer columns.
        basis = torch.linalg.qr(self.learner.steady.T).Q
        self.new_looks, self.learner.steady = steady(seen, self.learner.looks, widths) @ basis, self.learner.steady @ basis

    def score(self, answers: dict[int, int]) -> float:
        """Accuracy on the test part, percent."""
        log_p, given = self.new_log_p, known(answers)
        logits = teach(self.learner.steady, self.learner.log_p, given).logits(self.new_looks, log_p) if len(given) else log_p
        return round(100 * float((logits.argmax(1).numpy() == self.test_truth).mean()), 2)

    def looked(self, plan: str, budgets: list[int]) -> Iterator[tuple[int, dict[int, int], int, dict[str, float]]]:
        """Budget, answers so far, groups among the looks, and what the page says of the accuracy."""
        answers: dict[int, int] = {}
        look: dict[int, int] = {}
        curve: list[tuple[int, Tensor]] = []
        shown: set[int] = set()
        out: set[int] = set()
        looks = groups = 0
        while looks < budgets[-1]:
            p = self.learner.posteriors(known(answers), self.classes)
            doubt, learnt = 1 - p.amax(1), len(answers)
            curve = [*(point for point in curve if point[0] < learnt), (learnt, p.argmax(1))]
            at = torch.tensor(sorted(shown), dtype=torch.int64)
            left = next(budget for budget in budgets if budget > looks) - looks
            asked = ask(self.learner.looks, doubt, at, left, classes=self.classes)
            if not len(asked.rows):
                # Groups have answered all photographs but near-copies.
                yield from ((budget, dict(answers), groups, {}) for budget in budgets if budget > looks)
                return
            drawn = iter([row for row in self.order if row not in shown])
            for row in asked.rows.tolist():
                if plan == "sheet" and (looks + 1) % ONE_IN == 0:
                    row = next((row for row in drawn if row not in shown), row)
                if row in shown:
                    continue
                free = torch.ones(len(self.truth), dtype=torch.bool)
                free[sorted(shown)] = False
                members = torch.tensor([row])
                if row not in out and (plan == "groups" or (plan == "sheet" and (looks + 1) % ONE_IN)):
                    near = group_around(self.learner.looks, row, free)
                    members = near if len(near) >= LEAST else members
                groups += len(members) > 1
                own = self.truth[members.numpy()]
                name = int(np.bincount(own).argmax())
                inside = members[torch.as_tensor(own == name)].tolist()
                answers |= dict.fromkeys(inside, name)
                look |= dict.fromkeys(inside, row)
                shown |= set(answers)
                out |= {row} - shown
                looks += 1
                if looks in budgets:
                    yield looks, dict(answers), groups, self.told(answers, look, curve)
                if looks == budgets[-1]:
                    return

    def told(self, answers: dict[int, int], look: dict[int, int], curve: list[tuple[int, Tensor]]) -> dict[str, float]:
        """The page's estimate after these answers and its interval, percent; of a group its middle is a test. ``look``: the middle of each."""
        p = self.learner.posteriors(known(answers), self.classes)
        points = [*(point for point in curve if point[0] < len(answers)), (len(answers), p.argmax(1))]
        q, given, drawn = p.numpy(), known(answers, look), drawn_answers(self.order, set(answers))
        assert given.look is not None
        guesses_of_others, changed = left_out(self.learner.steady, self.learner.log_p, given)
        found = progress(
            torch.where(given.look == given.rows, given.labels, -1),
            guesses_of_others,
            [row in drawn for row in given.rows.tolist()],
            spoken_for(self.learner.steady, given),
            classes=self.classes,
            changed=changed,
            curve=[(count, believed_accuracy(q, guesses.numpy())) for count, guesses in points],
        )
        return {name: round(100 * value, 2) for name, value in (("estimate", found.estimate), ("low", found.low), ("high", found.high))}


def known(answers: dict[int, int], look: dict[int, int] | None = None) -> Known:
    rows = torch.tensor(sorted(answers), dtype=torch.int64)
    labels, looks = ([own[i] for i in rows.tolist()] for own in (answers, answers if look is None else look))
    return Known(rows, torch.tensor(labels, dtype=torch.int64), None if look is None else torch.tensor(looks, dtype=torch.int64))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: accuracy with C / 2C / 4C looks, the mean over the draws; points over no answer by the look, and photographs answered by the look."""
    sets = list(dict.fromkeys(row["set"] for row in found))
    lines = ["| looks | " + " | ".join([*sets, "mean"]) + " | points a look | photographs a look |", "|---" * (len(sets) + 4) + "|"]

    def mean(name: str, plan: str, times: int, key: str = "accuracy") -> float:
        return float(np.mean([row[key] for row in found if (row["set"], row["plan"], row["times"]) == (name, plan, times)]))

    for plan in dict.fromkeys(row["plan"] for row in found):
        times = sorted({row["times"] for row in found if row["plan"] == plan})
        means = [[mean(name, plan, t) for t in times] for name in sets]
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in (*means, np.mean(means, 0))]
        gains = [np.mean([(mean(name, plan, t) - mean(name, "none", 0)) / mean(name, plan, t, "looks") for name in sets]) for t in times if t]
        given = [np.mean([mean(name, plan, t, "answers") / mean(name, plan, t, "looks") for name in sets]) for t in times if t]
        cells += [" / ".join(f"{value:.2f}" for value in gains), " / ".join(f"{value:.1f}" for value in given)]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    told = [row for row in found if row["plan"] == "sheet" and "low" in row]
    if told:
        held = np.mean([row["low"] <= row["accuracy"] <= row["high"] for row in told])
        off = np.mean([row["estimate"] - row["accuracy"] for row in told])
        lines += [
            "",
            f"sheet: {len(told)} intervals, {held:.0%} of which hold the accuracy on new photographs; the estimate is off by {off:+.1f} on average",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
