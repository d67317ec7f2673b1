"""A results file as one HTML page that needs nothing else: tables to sort, intervals, accuracy against cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from statistics import mean

from finelens.bench.rows.results import Result, run_seconds
from finelens.bench.tables.paired import (
    BASELINE,
    NO_RESULT,
    SECONDS,
    WORST,
    Difference,
    applicable,
    by_data,
    forwards_per_image,
    grouped,
    mean_difference,
    mixed_seeds,
    of_one_class,
    paired_difference,
    title,
    zero_shot_rows,
)
from finelens.bench.tables.published import beside
from finelens.bench.tables.scatter import Point, scatter
from finelens.bench.tables.summary import NOTE, Setting, baseline_of, by_setting, common, findings, setting_title, standings
from finelens.bench.tables.table import untrained_note
from finelens.errors import UserError

# Column by which a table is sorted when it is opened.
FIRST = "mean"


@dataclass(frozen=True)
class Line:
    """A method in a table.

    Attributes:
        method: Its name.
        accuracy: Mean over seeds by data set; only sets with a result.
        gain: Difference to zero-shot by data set, where zero-shot was run on the images of every seed.
        notes: Status and reason by data set, where there is no number.
        seeds: Fewest seeds of a data set; 0 without a result.
        seconds: Mean wall time of a run with encoding, over sets; None without a result.
        forwards: Forwards per image, one with gradient counting as two.
    """

    method: str
    accuracy: Mapping[str, float]
    gain: Mapping[str, Difference]
    notes: Mapping[str, str]
    seeds: int
    seconds: float | None
    forwards: float | None


def leaderboard(results: Iterable[Result]) -> str:
    """The page.

    Raises:
        UserError: There is nothing to show.
    """
    rows, several = of_one_class(results)
    groups = grouped(rows)
    if not any(row.status == "ok" for own in groups.values() for row in own):
        raise UserError(several or NO_RESULT)
    template = files("finelens.bench.tables").joinpath("leaderboard.html").read_text(encoding="utf-8")
    zero_shot = zero_shot_rows(rows)
    parts = [(f"In short: {setting_title(setting)}", _summary(setting, own, rows)) for setting, own in by_setting(rows).items()]
    parts += [(title(group), _section(own, zero_shot.get(group[:2], []))) for group, own in groups.items()]
    links = "".join(f'<li><a href="#g{i}">{escape(name)}</a></li>' for i, (name, _) in enumerate(parts))
    sections = "\n".join(f'<section id="g{i}"><h2>{escape(name)}</h2>{text}</section>' for i, (name, text) in enumerate(parts))
    content = {"LINKS": links, "SECTIONS": sections, "ORIGIN": _origin(list(groups.values())) + (f"<li>{escape(several)}</li>" if several else "")}
    return re.sub("@(LINKS|SECTIONS|ORIGIN)@", lambda found: content[found[1]], template)


def lines_of(rows: Sequence[Result], zero_shot: Sequence[Result] = ()) -> list[Line]:
    """The lines of a table, best mean first; methods that are not there for every set come after, in order of appearance.

    Args:
        rows: Rows of one table.
        zero_shot: Rows of zero-shot under the same protocol and backbone, where it was run with another profile.
    """
    sets = set(applicable(rows))
    baseline = by_data([*zero_shot, *(row for row in rows if row.key.method == BASELINE)])
    lines = []
    for method in dict.fromkeys(row.key.method for row in rows):
        own = by_data(row for row in rows if row.key.method == method)
        done = {data: ok for data, found in own.items() if (ok := [row for row in found if row.status == "ok"])}
        gains = {data: paired_difference(found, baseline.get(data, [])) for data, found in done.items()}
        flat = [row for found in done.values() for row in found]
        lines.append(
            Line(
                method,
                {data: mean(row.measures["accuracy"] for row in found) for data, found in done.items()},
                {data: gain for data, gain in gains.items() if gain is not None and gain.seeds >= len(done[data])},
                {data: f"{found[0].status.replace('_', ' ')}: {found[0].reason}" for data, found in own.items() if data not in done},
                min((len(found) for found in done.values()), default=0),
                mean(run_seconds(row) for row in flat) if flat else None,
                forwards_per_image(flat),
            )
        )
    return sorted(lines, key=lambda line: -mean(line.accuracy.values()) if set(line.accuracy) == sets != set() else 0.0)


def _summary(setting: Setting, rows: Sequence[Result], everything: Sequence[Result]) -> str:
    """What the rows of a setting say, and one line a method."""
    protocols, table = common(rows), standings(rows)
    sentences = "".join(f"<li>{_code(line)}</li>" for line in findings(table, rows, baseline_of(setting, everything)))
    head = "".join(
        _header(name, name != "method")
        for name in ("method", *(f"{name} ({one.title})" for name, one in protocols.items()), WORST, "wholly below", "rows")
    )
    body = []
    for one in table:
        cells = [f'<th scope="row" data-value="{escape(one.method)}">{escape(one.method)}</th>']
        cells += [_plain(100 * one.means[name] if name in one.means else None, ".1f") for name in protocols]
        cells.append(f'<td data-value="{one.lowest.measures["difference"]:.6f}">{escape(one.worst)}</td>')
        cells += [_plain(one.below, "d"), _plain(one.rows, "d")]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<ul class="findings">{sentences}</ul>{_table(head, body, NOTE)}'


def _code(line: str) -> str:
    """A sentence as HTML; names stand in backquotes."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(line))


def _table(head: str, body: Sequence[str], caption: str) -> str:
    rows = "\n".join(body)
    about = f"<caption><span>{escape(caption)}</span></caption>"
    return f'<div class="scroll"><table>{about}<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _section(rows: Sequence[Result], zero_shot: Sequence[Result]) -> str:
    sets = applicable(rows)
    lines = lines_of(rows, zero_shot)
    shown = [line for line in lines if line.accuracy]
    head = "".join(_header(name, name != "method") for name in ("method", FIRST, WORST, "forwards", "seconds", "seeds", *sets))
    complete = [line for line in shown if set(line.accuracy) == set(sets)]
    caption = "Accuracy in per cent, mean over seeds; below it the difference to zero-shot with its 95 % interval. Forwards are per image, "
    caption += f"{SECONDS}."
    skipped = {row.key.data: row.reason for row in rows if row.key.data not in sets}
    if skipped:
        caption += f" Everything was skipped on {', '.join(skipped)}: {'; '.join(dict.fromkeys(skipped.values()))}."
    if untrained := untrained_note(rows):
        caption += f" {untrained}"
    if mixed_seeds(rows):
        caption += " Not all methods have the same seeds; what is in short above compares the same ones."
    absent = "".join(
        f"<li>{escape(line.method)}: {escape('; '.join(dict.fromkeys(line.notes.values())))}</li>" for line in lines if not line.accuracy
    )
    left = f'<p>Without a number:</p><ul class="absent">{absent}</ul>' if absent else ""
    return f"{_table(head, [_row(line, sets) for line in shown], caption)}{left}{_figures(complete)}{_published(rows, sets)}"


def _figures(lines: Sequence[Line]) -> str:
    """Accuracy against wall time, and against counted forwards where methods differ in them."""
    if len(lines) < 2:
        return ""
    heights = {line.method: 100 * mean(line.accuracy.values()) for line in lines}
    forwards = [line.forwards or 0.0 for line in lines]
    costs = [("seconds a run, encoding included", [line.seconds or 0.0 for line in lines])]
    costs += [("forwards per image, one with gradient counting as two", forwards)] if max(forwards) > 1.05 * min(forwards) else []
    return "".join(
        scatter([Point(line.method, cost, heights[line.method]) for line, cost in zip(lines, values, strict=True)], label, "mean accuracy, %")
        for label, values in costs
    )


def _published(rows: Sequence[Result], sets: Sequence[str]) -> str:
    """Published numbers on the same data sets, closed until somebody wants them."""
    found = beside(rows)
    if not found:
        return ""
    shown = [name for name in sets if any(name in one.values for one in found)]
    head = "".join(_header(name, name in shown) for name in ("method", "source", "backbone", "protocol", *shown, "comparable"))
    body = []
    for one in found:
        cells = [f'<th scope="row" data-value="{escape(one.method)}">{escape(one.method)}</th>']
        cells += [f'<td data-value="{escape(text)}">{escape(text)}</td>' for text in (one.source, one.backbone, one.protocol)]
        cells += [_plain(one.values.get(name), "g") for name in shown]
        cells.append(f'<td data-value="{escape(one.mark)}">{escape(one.mark)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = "Top-1 accuracy in per cent as the sources give it: not our measurements. What is not marked comparable was found otherwise."
    about = f"Published by others ({len(found)} lines), apart from our measurements"
    return f'<details class="published"><summary>{about}</summary>{_table(head, body, caption)}</details>'


def _header(name: str, numeric: bool) -> str:
    kind = "number" if numeric else "text"
    order = ' aria-sort="descending"' if name == FIRST else ""
    return f'<th scope="col" data-kind="{kind}"{order}><button type="button">{escape(name)}</button></th>'


def _row(line: Line, sets: Sequence[str]) -> str:
    cells = [f'<th scope="row" data-value="{escape(line.method)}">{escape(line.method)}</th>']
    complete = set(line.accuracy) == set(sets)
    gains = [line.gain[name] for name in sets if name in line.gain]
    whole = complete and len(gains) == len(sets)
    cells.append(_cell(mean(line.accuracy.values()) if complete else None, mean_difference(gains) if whole else None, "-: not run on every set"))
    cells.append(_plain(100 * min(gain.difference for gain in gains) if whole else None, "+.1f"))
    cells += [_plain(line.forwards, ".1f"), _plain(line.seconds, ".1f"), _plain(line.seeds, "d")]
    cells += [_cell(line.accuracy.get(name), line.gain.get(name), line.notes.get(name, "-: not run")) for name in sets]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(accuracy: float | None, gain: Difference | None, note: str) -> str:
    if accuracy is None:
        return f'<td data-value="" class="none"><span title="{escape(note)}">{escape(note.partition(":")[0])}</span></td>'
    text = f"{100 * accuracy:.1f}"
    if gain is None or gain.draws.std() == 0 == gain.difference:
        return f'<td data-value="{accuracy:.6f}">{text}</td>'
    kind = "up" if gain.low > 0 else "down" if gain.high < 0 else "even"
    interval = f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return f'<td data-value="{accuracy:.6f}">{text}<small class="{kind}">{interval}</small></td>'


def _plain(value: float | None, form: str) -> str:
    return '<td data-value="" class="none">-</td>' if value is None else f'<td data-value="{value:.6f}">{value:{form}}</td>'


def _origin(groups: Sequence[Sequence[Result]]) -> str:
    """Data, versions and one command of everything shown."""
    rows = [row for group in groups for row in group]
    data = {row.key.data: row.source for row in rows}
    items = [
        f"<li>{escape(name)}: {source['train']} training and {source['test']} test images, {source['classes']} classes, "
        f"{escape(str(source['split']))}, "
        f"checksum <code>{escape(str(source['checksum'])[:16])}</code></li>"
        for name, source in data.items()
    ]
    versions = sorted({", ".join(f"{name} {value}" for name, value in row.versions.items()) for row in rows})
    items += [f"<li>computed with {escape(text)}</li>" for text in versions]
    return "".join([*items, f"<li>each line has its command, for example <code>{escape(rows[0].command)}</code></li>"])
