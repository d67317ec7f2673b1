"""What results say, computed from their rows: the best method by mean, by worst case and by cost, and whether the defaults fall below zero-shot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from finelens.bench.rows.results import Result, run_seconds
from finelens.bench.tables import markdown
from finelens.bench.tables.paired import (
    BASELINE,
    NO_RESULT,
    WORST,
    Place,
    by_data,
    forwards_per_image,
    mean_difference,
    of_one_class,
    paired_difference,
    place_of,
    row_at,
    unique,
    zero_shot_rows,
)
from finelens.errors import UserError
from finelens.methods.auto import AUTO, Facts, choose_method
from finelens.methods.registry import all_methods
from finelens.runs.config import RunConfig

# What finelens adapt takes where nothing is said.
DEFAULT = RunConfig.method
ONLINE = "online"

Setting = tuple[str, str, tuple[str, ...]]
# Protocol, data set, seed.
Cell = tuple[str, str, int]


@dataclass(frozen=True)
class Common:
    """What methods are compared on under one protocol: seeds draw splits, so means over different seeds are means over different images.

    Attributes:
        sets: All data sets with a result.
        seeds: The seeds that the most methods, zero-shot apart, have on all sets; none where no method was run on every set.
    """

    sets: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def title(self) -> str:
        """Both in words."""
        seeds = f", {'seed' if len(self.seeds) == 1 else 'seeds'} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        return f"{len(self.sets)} {'set' if len(self.sets) == 1 else 'sets'}{seeds}"


@dataclass(frozen=True)
class Standing:
    """A method over the protocols, data sets and seeds of one setting that methods are compared on.

    All but ``means`` leaves out online protocols (methods without an answer to a stream are no worse for it) and those that fewer than half of the
    methods were run under. Of a method that is not complete it counts what is there.

    Attributes:
        method: Its name.
        means: Mean accuracy by protocol, over data sets and seeds; only protocols of which it has all.
        lowest: The row with the lowest difference to zero-shot, which may be above it.
        below: Rows whose 95 % interval of the difference to zero-shot lies wholly below zero.
        rows: All rows.
        gain: Mean difference to zero-shot over data sets and protocols.
        forwards: Forwards of the image tower per image, one with gradient counting as two.
        seconds: Mean wall time of a run with encoding.
        complete: Whether it has all that methods are compared on.
    """

    method: str
    means: Mapping[str, float]
    lowest: Result
    below: int
    rows: int
    gain: float
    forwards: float
    seconds: float
    complete: bool

    @property
    def worst(self) -> str:
        """The lowest row in words."""
        return _fall(self.lowest)


def by_setting(results: Iterable[Result]) -> dict[Setting, list[Result]]:
    """Rows that may be compared over protocols: same backbone, profile and options; only those with a number."""
    groups: dict[Setting, list[Result]] = defaultdict(list)
    for row in unique(results):
        if row.status == "ok" and "difference" in row.measures:
            groups[row.key.backbone, row.key.profile, row.key.options].append(row)
    return dict(groups)


def setting_title(setting: Setting) -> str:
    """Heading of a setting."""
    backbone, profile, options = setting
    return f"{backbone}, profile {profile}" + (f", not the defaults: {' '.join(options)}" if options else "")


def common(rows: Iterable[Result]) -> dict[str, Common]:
    """What the methods of a setting are compared on, by protocol in order of appearance."""
    own = list(rows)
    cells = _cells(own)
    found = {}
    for protocol in dict.fromkeys(row.key.protocol for row in own):
        here = {name: mine for name, mine in cells.items() if any(cell[0] == protocol for cell in mine)}
        # Every row holds what zero-shot says of its images: rows of zero-shot that were not made keep no seed from being compared.
        judged = {name: mine for name, mine in here.items() if name != BASELINE} or here
        sets = tuple(dict.fromkeys(row.key.data for row in own if row.key.protocol == protocol))
        seeds = sorted({row.key.seed for row in own if row.key.protocol == protocol})
        there = {seed: {name for name, mine in judged.items() if all((protocol, data, seed) in mine for data in sets)} for seed in seeds}
        most = max(there.values(), key=len)
        found[protocol] = Common(sets, tuple(seed for seed in seeds if most and most <= there[seed]))
    return found


def _cells(rows: Sequence[Result]) -> dict[str, dict[Cell, Result]]:
    """Rows of each method by cell, in order of appearance; a row of zero-shot stands wherever others were asked about its test images."""
    found: dict[str, dict[Cell, Result]] = defaultdict(dict)
    for row in rows:
        found[row.key.method][_cell(row)] = row
    zero_shot: dict[tuple[str, str], dict[Place, Result]] = defaultdict(dict)
    for cell, row in found.get(BASELINE, {}).items():
        zero_shot[cell[:2]][place_of(row)] = row
    for row in rows:
        stand_in = row_at(zero_shot.get(_cell(row)[:2], {}), place_of(row))
        if stand_in is not None:
            found[BASELINE].setdefault(_cell(row), stand_in)
    return dict(found)


def standings(rows: Sequence[Result]) -> list[Standing]:
    """Every method of a setting, in order of appearance."""
    shared = common(rows)
    judged = [row for row in rows if row.key.method != BASELINE] or rows
    asked = {_cell(row) for row in judged if row.key.seed in shared[row.key.protocol].seeds or not shared[row.key.protocol].seeds}
    usual = _usual(judged)
    needed = {cell for cell in asked if cell[0] in usual} or asked
    return [_standing(method, cells, shared, needed) for method, cells in _cells(rows).items()]


def _usual(rows: Sequence[Result]) -> set[str]:
    """Protocols that at least half of the methods were run under; a study of a few methods makes no other incomplete. None of streams."""
    methods: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        methods[row.key.protocol].add(row.key.method)
    half = len({row.key.method for row in rows}) / 2
    return {name for name, found in methods.items() if len(found) >= half and not name.startswith(ONLINE)}


def _standing(method: str, cells: Mapping[Cell, Result], shared: Mapping[str, Common], needed: set[Cell]) -> Standing:
    compared = {cell: row for cell, row in cells.items() if cell in needed} or cells
    own = list(compared.values())
    differences: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (protocol, data, _), row in compared.items():
        differences[protocol, data].append(row.measures["difference"])
    means = {}
    for name, one in shared.items():
        wanted = {(name, data, seed) for data in one.sets for seed in one.seeds}
        if wanted and wanted <= set(cells):
            means[name] = mean(cells[cell].measures["accuracy"] for cell in wanted)
    return Standing(
        method=method,
        means=means,
        lowest=min(own, key=lambda row: row.measures["difference"]),
        below=_wholly_below(own),
        rows=len(own),
        gain=mean(mean(found) for found in differences.values()),
        forwards=forwards_per_image(own) or 0.0,
        seconds=mean(run_seconds(row) for row in own),
        complete=needed <= set(cells),
    )


def findings(table: Sequence[Standing], rows: Sequence[Result], zero_shot: Sequence[Result] = ()) -> list[str]:
    """What the rows of a setting say, one sentence each.

    Args:
        table: Their standings.
        rows: Rows of one backbone, profile and options.
        zero_shot: Rows of zero-shot with this backbone, where it was run with another profile.
    """
    adapting = {method.name for method in all_methods() if method.adapts}
    full = [one for one in table if one.complete and one.method != BASELINE]
    shared = common(rows)
    lines = [_best_mean([*zero_shot, *rows], table, name, one) for name, one in shared.items()]
    judged = [one for one in full if one.method in adapting] or full
    if judged:
        best = max(judged, key=lambda one: (one.lowest.measures["difference"], one.gain))
        none = [f"`{one.method}`" for one in judged if not one.below]
        lines.append(
            f"Best by worst case, of methods that adapt: `{best.method}`, at worst {best.worst} against zero-shot, {best.below} of {best.rows} rows "
            "wholly below it. " + (f"No row wholly below: {', '.join(none)}." if none else "Every one has rows wholly below it.")
        )
    gaining = [one for one in full if one.gain > 0]
    if gaining:
        each = [
            _cheapest(gaining, "forward", "an image", lambda one: one.forwards),
            _cheapest(gaining, "second", "a run, encoding included", lambda one: one.seconds),
        ]
        lines.append(f"Best by cost: {'; '.join(each)}.")
    left = [f"`{one.method}`" for one in table if not one.complete]
    if left:
        lines.append(f"Not compared over all protocols and sets, for want of rows: {', '.join(left)}.")
    judged_rows = [row for row in rows if row.key.method != BASELINE]
    lines += _left_out([row for row in judged_rows if shared[row.key.protocol].seeds and row.key.seed not in shared[row.key.protocol].seeds])
    lines.append(_falls(f"The default, `{DEFAULT}`,", [row for row in rows if row.key.method == DEFAULT]))
    lines.append(_falls(f"`--method {AUTO}`{_takes(rows)}", auto_rows(rows)))
    return lines


def auto_rows(rows: Sequence[Result]) -> list[Result]:
    """The rows of the method that ``--method auto`` would have chosen, for each data set, protocol and seed that has them.

    The rule is asked without a time for training. That a set has descriptions is assumed: without them ``cupl`` answers as zero-shot does.
    """
    by_key = {(row.key.data, row.key.protocol, row.key.seed, row.key.method): row for row in rows}
    found = []
    for place in dict.fromkeys(key[:3] for key in by_key):
        split = next(row.split for key, row in by_key.items() if key[:3] == place)
        classes = int(split.get("classes", 0))
        labelled = int(split.get("labelled", 0))
        facts = Facts(
            images=int(split["fit"]),
            classes=classes,
            named=classes,
            photographs=True,
            descriptions=True,
            hints=labelled,
            # A protocol that gives labels gives some of every class.
            hinted=classes if labelled else 0,
        )
        row = by_key.get((*place, choose_method(facts)[0]))
        if row is not None and not place[1].startswith(ONLINE):
            found.append(row)
    return found


def summary(results: Iterable[Result]) -> str:
    """Markdown: for each backbone, profile and set of options what the rows say, and one line a method.

    Raises:
        UserError: There is no result.
    """
    rows, several = of_one_class(results)
    settings = by_setting(rows)
    if not settings:
        raise UserError(several or NO_RESULT)
    text = "\n".join(_text(setting, own, baseline_of(setting, rows)) for setting, own in settings.items())
    return f"{text}\n{several}\n" if several else text


def baseline_of(setting: Setting, results: Iterable[Result]) -> list[Result]:
    """Rows of zero-shot with the backbone of a setting."""
    return [row for (_, backbone), rows in zero_shot_rows(results).items() if backbone == setting[0] for row in rows]


def _text(setting: Setting, rows: Sequence[Result], zero_shot: Sequence[Result]) -> str:
    protocols, table = common(rows), standings(rows)
    lines = [f"### {setting_title(setting)}", "", *(f"- {line}" for line in findings(table, rows, zero_shot)), ""]
    columns = ["method", *(f"{name} ({one.title})" for name, one in protocols.items()), WORST, "wholly below"]
    body = []
    for one in table:
        cells = [f"{100 * one.means[name]:.1f}" if name in one.means else "-" for name in protocols]
        body.append([f"`{one.method}`", *cells, one.worst, f"{one.below} of {one.rows}"])
    lines += markdown.table(columns, body)
    return "\n".join([*lines, "", NOTE, ""])


NOTE = (
    "Mean accuracy in per cent over the data sets and seeds in brackets: the seeds that the most methods have on all sets. The last columns are over "
    "the same rows (set, protocol, seed), without online protocols and those that fewer than half of the methods were run under. Worst difference: "
    "of the row that is lowest against zero-shot (the unadapted model with templates). Wholly below: rows whose paired 95 % interval against it is "
    "below zero."
)


def _cell(row: Result) -> Cell:
    return row.key.protocol, row.key.data, row.key.seed


def _wholly_below(rows: Iterable[Result]) -> int:
    return sum(row.measures["difference_interval"][1] < 0 for row in rows)


def _best_mean(rows: Sequence[Result], table: Sequence[Standing], protocol: str, shared: Common) -> str:
    ranked = sorted((one for one in table if protocol in one.means), key=lambda one: -one.means[protocol])
    if not ranked:
        return f"{protocol}: no method was run on every set."
    best = ranked[0]
    text = f"Best by mean, {protocol} ({shared.title}): `{best.method}`, {100 * best.means[protocol]:.1f}"
    if best.method == BASELINE:
        return f"{text}; no method is better."
    own = by_data(row for row in rows if (row.key.protocol, row.key.method) == (protocol, best.method) and row.key.seed in shared.seeds)
    base = by_data(row for row in rows if (row.key.protocol, row.key.method) == (protocol, BASELINE))
    known = [one for data, found in own.items() if (one := paired_difference(found, base.get(data, []))) is not None and one.seeds == len(found)]
    if len(known) < len(own):
        gain = mean(mean(row.measures["difference"] for row in found) for found in own.values())
        return f"{text}, {100 * gain:+.1f} against zero-shot{_second(ranked, protocol)}."
    whole = mean_difference(known)
    interval = f"[{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
    return f"{text}, {100 * whole.difference:+.1f} {interval} against zero-shot{_second(ranked, protocol)}."


def _left_out(rows: Sequence[Result]) -> list[str]:
    if not rows:
        return []
    lowest, below = min(rows, key=lambda row: row.measures["difference"]), [row for row in rows if _wholly_below([row])]
    text = f"Left out of these comparisons: {len(rows)} {'row' if len(rows) == 1 else 'rows'} of other seeds"
    if lowest.measures["difference"] >= 0:
        return [f"{text}, none below zero-shot."]
    names = ", ".join(dict.fromkeys(f"`{row.key.method}`" for row in below))
    fall = f"furthest below zero-shot `{lowest.key.method}`, {_fall(lowest)}; wholly below {len(below)}{f', of {names}' if names else ''}"
    return [f"{text}. Among them {fall}."]


def _fall(row: Result) -> str:
    """A difference to zero-shot and where."""
    return f"{100 * row.measures['difference']:+.1f} ({row.key.data}, {row.key.protocol}{f', seed {row.key.seed}' if row.key.seed else ''})"


def _second(ranked: Sequence[Standing], protocol: str) -> str:
    return f"; then `{ranked[1].method}`, {100 * ranked[1].means[protocol]:.1f}" if len(ranked) > 1 else ""


def _cheapest(table: Sequence[Standing], unit: str, of: str, cost: Callable[[Standing], float]) -> str:
    best = max(table, key=lambda one: one.gain / max(cost(one), 1e-9))
    return f"`{best.method}` gains most per {unit} ({100 * best.gain:+.1f} against zero-shot with {cost(best):.3g} {unit}s {of})"


def _takes(rows: Sequence[Result]) -> str:
    names = dict.fromkeys(row.key.method for row in auto_rows(rows))
    return f", which takes {', '.join(f'`{name}`' for name in names)} here," if names else ""


def _falls(what: str, rows: Sequence[Result]) -> str:
    """Whether a method falls below zero-shot."""
    if not rows:
        return f"{what} was not run."
    below = [row for row in rows if row.measures["difference"] < 0]
    if not below:
        return f"{what} falls below zero-shot in none of {len(rows)} rows."
    lowest = min(below, key=lambda row: row.measures["difference"])
    where = f"{100 * lowest.measures['difference']:+.1f} on {lowest.key.data}, {lowest.key.protocol}"
    return f"{what} falls below zero-shot in {len(below)} of {len(rows)} rows, furthest {where}; wholly below in {_wholly_below(rows)}."
