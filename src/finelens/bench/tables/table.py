"""Markdown tables of results, one per protocol, backbone, profile and options: methods by data sets, or one line a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean, pstdev
from typing import Any

from finelens.bench.rows.measures import SHARES
from finelens.bench.rows.results import Result, run_seconds
from finelens.bench.tables import markdown
from finelens.bench.tables.paired import (
    AGAINST,
    NO_RESULT,
    SECONDS,
    WORST,
    Group,
    applicable,
    forwards_per_image,
    grouped,
    mixed_seeds,
    of_one_class,
    title,
    unique,
)
from finelens.bench.tables.published import beside
from finelens.errors import UserError

# Behind a number of a run that was kept from training.
UNTRAINED = "°"


def markdown_tables(results: Iterable[Result], measure: str = "accuracy", published: bool = False) -> str:
    """All tables, as Markdown.

    Args:
        results: Rows; of equal keys the last counts.
        measure: What the cells show: the mean over seeds, with the standard deviation if there are several seeds and it is not 0.
        published: Whether a table of published numbers on the same data sets follows each table.

    Raises:
        UserError: There is nothing to show, or no such measure.
    """
    rows = unique(results)
    one_class, several = of_one_class(rows)
    # Some measures are of both kinds of sets.
    shown = one_class if several and one_class and not any(measure in row.measures for row in rows if not row.correct) else rows
    groups = grouped(shown)
    known = sorted({name for rows in groups.values() for row in rows for name, value in row.measures.items() if isinstance(value, int | float)})
    if not known:
        raise UserError(NO_RESULT)
    if measure not in known:
        raise UserError(several if several and measure in SHARES else f"unknown measure {measure!r}; there are {', '.join(known)}")
    text = "\n".join(_table(group, rows, measure) + (_published(rows) if published else "") for group, rows in groups.items())
    return f"{text}\n{several}\n" if several and shown is one_class else text


def markdown_runs(results: Iterable[Result]) -> str:
    """One line a row that has a number: the unadapted answers, the answer, the method's branches alone, the difference to zero-shot and its interval.

    Args:
        results: Rows; of equal keys the last counts.

    Raises:
        UserError: There is nothing to show.
    """
    one_class, several = of_one_class(results)
    tables = [_runs(group, done) for group, rows in grouped(one_class).items() if (done := [row for row in rows if row.status == "ok"])]
    if not tables:
        raise UserError(several or NO_RESULT)
    return "\n".join([*tables, *([f"{several}\n"] if several else [])])


def _runs(group: Group, rows: Sequence[Result]) -> str:
    branches = list(dict.fromkeys(name for row in rows for name in row.measures.get("branches", {})))
    columns = ["method", "set", "seed", "fit / test images", "zero-shot", "descriptions", "accuracy", *branches, "difference", "95 % interval", "s"]
    lines = [f"### {title(group)}", "", f"per cent; {AGAINST}; {SECONDS}", ""]
    body = []
    for row in rows:
        measures, key = row.measures, row.key
        low, high = (100 * end for end in measures["difference_interval"])
        accuracies = [measures["zero_shot_accuracy"], measures.get("description_ensemble_accuracy"), measures["accuracy"]]
        accuracies += [measures.get("branches", {}).get(name) for name in branches]
        shares = ["-" if value is None else _format(value, "accuracy") for value in accuracies]
        cells = [key.method, key.data, key.seed, f"{row.split['fit']} / {row.split['test']}", *shares]
        cells += [f"{100 * measures['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{run_seconds(row):.0f}"]
        body.append(cells)
    return "\n".join([*lines, *markdown.table(columns, body)]) + "\n"


def _table(group: Group, rows: Sequence[Result], measure: str) -> str:
    sets = applicable(rows)
    methods = list(dict.fromkeys(row.key.method for row in rows))
    lines = [f"### {title(group)}", "", f"{measure}, {_unit(measure)}; {AGAINST}; {SECONDS}", ""]
    columns = ["method", *sets, "mean", WORST, "forwards", "s"]
    body = []
    for method in methods:
        own = [row for row in rows if row.key.method == method]
        cells = [_cell([row for row in own if row.key.data == name], measure) for name in sets]
        done = [row for row in own if row.status == "ok"]
        values, differences = ([found for name in sets if (found := _values(done, name, wanted))] for wanted in (measure, "difference"))
        average = _format(mean(map(mean, values)), measure) if len(values) == len(sets) > 0 else "-"
        worst = f"{100 * min(map(mean, differences)):+.1f}" if len(differences) == len(sets) > 0 else "-"
        forwards = forwards_per_image(done)
        body.append([method, *cells, average, worst, "-" if forwards is None else f"{forwards:.1f}", _seconds(done)])
    return "\n".join([*lines, *markdown.table(columns, body)]) + "\n" + _reasons(rows) + _untrained(rows) + _seeds(rows)


def _unit(measure: str) -> str:
    unit = "per cent, mean over seeds" if measure in SHARES else "mean over seeds"
    # Measures of this name have another baseline.
    return f"{unit}, over the better of zero-shot and descriptions" if measure.endswith("gain") else unit


def _values(rows: Sequence[Result], data: str, measure: str) -> list[float]:
    """Of each seed; none where a row lacks the measure, for a mean over some seeds would look like one over all."""
    done = [row.measures for row in rows if row.key.data == data and row.status == "ok"]
    return [measures[measure] for measures in done] if all(measure in measures for measures in done) else []


def _cell(rows: Sequence[Result], measure: str) -> str:
    values = _values(rows, rows[0].key.data, measure) if rows else []
    if not values:
        return "-" if not rows or any(row.status == "ok" for row in rows) else rows[0].status.replace("_", " ")
    spread = pstdev(values)
    return _format(mean(values), measure) + _mark(rows) + (f" ± {_format(spread, measure)}" if len(values) > 1 and spread > 0 else "")


def _mark(rows: Sequence[Result]) -> str:
    return UNTRAINED if any("untrained" in row.health for row in rows) else ""


def _format(value: Any, measure: str) -> str:
    return f"{100 * value:.1f}" if measure in SHARES else f"{value:.3f}"


def _seconds(rows: Sequence[Result]) -> str:
    return f"{mean(run_seconds(row) for row in rows):.1f}" if rows else "-"


def _reasons(rows: Sequence[Result]) -> str:
    """Why cells are empty."""
    reasons = dict.fromkeys((row.key.method, row.key.data, row.status.replace("_", " "), row.reason) for row in rows if row.status != "ok")
    sets_of: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for method, data, status, reason in reasons:
        sets_of[method, status, reason].append(data)
    methods_of: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (method, status, reason), sets in sets_of.items():
        methods_of[status, ", ".join(sets), reason].append(method)
    lines = [f"- {', '.join(methods)} {status} on {sets}: {reason}." for (status, sets, reason), methods in methods_of.items()]
    return "\n".join(["", *lines, ""]) if lines else ""


def untrained_note(rows: Sequence[Result]) -> str:
    """On which sets methods were kept from training, a sentence; empty where they were not."""
    sets = dict.fromkeys(row.key.data for row in rows if _mark([row]))
    return f"Nothing was trained on {', '.join(sets)}, whose classes the starting model hardly knows: answers of zero-shot." if sets else ""


def _untrained(rows: Sequence[Result]) -> str:
    note = untrained_note(rows)
    return f"\n- {UNTRAINED} {note}\n" if note else ""


def _seeds(rows: Sequence[Result]) -> str:
    """Which seeds the means are over, where methods differ in them."""
    methods_of: dict[str, list[str]] = defaultdict(list)
    for method, seeds in mixed_seeds(rows).items():
        methods_of[seeds].append(method)
    if not methods_of:
        return ""
    return "\n- Not all have the same seeds: " + "; ".join(f"{seeds}: {', '.join(methods)}" for seeds, methods in methods_of.items()) + ".\n"


def _published(rows: Sequence[Result]) -> str:
    """Published top-1 accuracies on the data sets of a table, in a table of their own."""
    found = beside(rows)
    if not found:
        return "\nNo published number is known on these data sets.\n"
    sets = list(dict.fromkeys(row.key.data for row in rows if any(row.key.data in one.values for one in found)))
    lines = ["", "#### Published by others, top-1 in per cent: not our measurements", ""]
    body = []
    for one in found:
        cells = [f"{one.values[name]:g}" if name in one.values else "-" for name in sets]
        body.append([one.method, one.source, one.backbone, one.protocol, *cells, one.mark])
    return "\n".join([*lines, *markdown.table(["method", "source", "backbone", "protocol", *sets, "comparable"], body)]) + "\n"
