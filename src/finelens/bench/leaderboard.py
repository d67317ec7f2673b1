"""A results file as one HTML page that needs nothing else: tables to sort, intervals, accuracy against cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from statistics import mean

from finelens.bench.paired import Difference, Group, by_data, forwards_per_image, grouped, mean_difference, paired_difference, title
from finelens.bench.published import beside
from finelens.bench.results import Result
from finelens.bench.scatter import Point, scatter
from finelens.errors import UserError

BASELINE = "zero-shot"


@dataclass(frozen=True)
class Line:
    """A method in a table.

    Attributes:
        method: Its name.
        accuracy: Mean over seeds by data set; only sets with a result.
        gain: Difference to zero-shot by data set, where zero-shot was run on the same images.
        notes: Status and reason by data set, where there is no number.
        seconds: Mean wall time of a run with encoding, over sets; None without a result.
        forwards: Forwards per image, one with gradient counting as two.
    """

    method: str
    accuracy: Mapping[str, float]
    gain: Mapping[str, Difference]
    notes: Mapping[str, str]
    seconds: float | None
    forwards: float | None


def leaderboard(results: Iterable[Result]) -> str:
    """The page.

    Raises:
        UserError: There is nothing to show.
    """
    groups = grouped(results)
    if not any(row.status == "ok" for rows in groups.values() for row in rows):
        raise UserError("there is no result to show")
    template = files("finelens.bench").joinpath("leaderboard.html").read_text(encoding="utf-8")
    names = [title(group) for group in groups]
    links = "".join(f'<li><a href="#g{i}">{escape(name)}</a></li>' for i, name in enumerate(names))
    sections = "\n".join(_section(i, group, rows) for i, (group, rows) in enumerate(groups.items()))
    content = {"LINKS": links, "SECTIONS": sections, "ORIGIN": _origin(list(groups.values()))}
    return re.sub("@(LINKS|SECTIONS|ORIGIN)@", lambda found: content[found[1]], template)


def lines_of(rows: Sequence[Result]) -> list[Line]:
    """The lines of a table, in order of appearance."""
    baseline = by_data(row for row in rows if row.key.method == BASELINE)
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
                {data: gain for data, gain in gains.items() if gain is not None},
                {data: f"{found[0].status.replace('_', ' ')}: {found[0].reason}" for data, found in own.items() if data not in done},
                mean(_seconds(row) for row in flat) if flat else None,
                forwards_per_image(flat),
            )
        )
    return lines


def _seconds(row: Result) -> float:
    """Wall time as if nothing were shared."""
    return float(row.timing["seconds"] + row.timing.get("seconds_per_shared_forward", 0.0) * row.cost["no_grad_forwards"])


def _section(number: int, group: Group, rows: Sequence[Result]) -> str:
    sets = list(dict.fromkeys(row.key.data for row in rows))
    lines = lines_of(rows)
    seeds = len({row.key.seed for row in rows})
    head = "".join(_header(name, name != "method") for name in ("method", *sets, "mean", "worst difference", "forwards", "seconds"))
    body = "\n".join(_row(line, sets) for line in lines)
    complete = [line for line in lines if set(line.accuracy) == set(sets) and line.seconds is not None]
    points = [Point(line.method, line.seconds or 0.0, 100 * mean(line.accuracy.values())) for line in complete]
    figure = scatter(points, "seconds a run, encoding included (log scale)", "mean accuracy, %") if len(points) > 1 else ""
    caption = (
        f"Accuracy in per cent, mean over {seeds} {'seed' if seeds == 1 else 'seeds'}; below it the difference to zero-shot with its 95 % interval."
    )
    return (
        f'<section id="g{number}"><h2>{escape(title(group))}</h2><div class="scroll"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>{figure}{_published(rows, sets)}</section>"
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
    return (
        f'<details class="published"><summary>Published by others ({len(found)} lines), apart from our measurements</summary>'
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div></details>"
    )


def _header(name: str, numeric: bool) -> str:
    kind = "number" if numeric else "text"
    return f'<th scope="col" data-kind="{kind}"><button type="button">{escape(name)}</button></th>'


def _row(line: Line, sets: Sequence[str]) -> str:
    cells = [f'<th scope="row" data-value="{escape(line.method)}">{escape(line.method)}</th>']
    cells += [_cell(line.accuracy.get(name), line.gain.get(name), line.notes.get(name, "not run")) for name in sets]
    complete = set(line.accuracy) == set(sets)
    gains = [line.gain[name] for name in sets if name in line.gain]
    whole = complete and len(gains) == len(sets)
    cells.append(_cell(mean(line.accuracy.values()) if complete else None, mean_difference(gains) if whole else None, "not run on every set"))
    cells.append(_plain(100 * min(gain.difference for gain in gains) if whole else None, "+.1f"))
    cells += [_plain(line.forwards, ".1f"), _plain(line.seconds, ".1f")]
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
