"""``finelens bench compare``: two methods in the same results, or the same rows in two results files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finelens.bench.rows.results import Result
from finelens.bench.tables import markdown
from finelens.bench.tables.paired import BASELINE, Difference, by_data, grouped, mean_difference, paired_difference, title, zero_shot_rows
from finelens.errors import UserError

COLUMNS = ("set", "A", "B", "A - B", "95 % interval", "p", "seeds")


def compare_methods(results: Iterable[Result], a: str, b: str) -> str:
    """Markdown: accuracy of method A minus that of method B, set by set, for every protocol that both were run under; zero-shot of any profile.

    Raises:
        UserError: One of them is not in the results, or no two rows fit together.
    """
    rows = list(results)
    for name in (a, b):
        if not any(row.key.method == name for row in rows):
            raise UserError(f"there is no result of method {name}; there are {', '.join(sorted({row.key.method for row in rows})) or 'none'}")
    parts = []
    zero_shot = zero_shot_rows(rows)
    for group, own in grouped(rows).items():
        left, right = ([*(zero_shot.get(group[:2], []) if name == BASELINE else []), *(r for r in own if r.key.method == name)] for name in (a, b))
        table = _table(left, right)
        parts += [f"### {title(group)}: A = {a}, B = {b}", "", *table, ""] if table else []
    return _text(parts)


def compare_files(a: Sequence[Result], b: Sequence[Result]) -> str:
    """Markdown: accuracy in results A minus accuracy in results B, method by method and set by set, for rows with the same key.

    Raises:
        UserError: No two rows fit together.
    """
    parts = []
    both = {row.key for row in a} & {row.key for row in b}
    others = grouped(row for row in b if row.key in both)
    for group, own in grouped(row for row in a if row.key in both).items():
        theirs = others.get(group, [])
        for method in dict.fromkeys(row.key.method for row in own):
            table = _table([row for row in own if row.key.method == method], [row for row in theirs if row.key.method == method])
            parts += [f"### {title(group)}: {method}", "", *table, ""] if table else []
    return _text(parts)


def _text(parts: Sequence[str]) -> str:
    if not parts:
        raise UserError("no two results can be compared: they need the same data, protocol, seed and test images")
    return "\n".join([*parts, "Differences in points of accuracy; paired bootstrap over test images; p: exact McNemar test, for one seed."]) + "\n"


def _table(a: Iterable[Result], b: Iterable[Result]) -> list[str]:
    left, right = by_data(a), by_data(b)
    found = {name: paired_difference(rows, right.get(name, [])) for name, rows in left.items()}
    pairs = {name: difference for name, difference in found.items() if difference is not None}
    if not pairs:
        return []
    if len(pairs) > 1:
        pairs["mean"] = mean_difference(list(pairs.values()))
    return markdown.table(COLUMNS, [_cells(name, difference) for name, difference in pairs.items()])


def _cells(name: str, d: Difference) -> tuple[str, ...]:
    p = "" if d.p is None else f"{d.p:.3g}"
    interval = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
    return name, f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", f"{100 * d.difference:+.1f}", interval, p, str(d.seeds)
