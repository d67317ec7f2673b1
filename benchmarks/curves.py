"""Curves of accuracy against answers as one SVG of small panels, a panel a set; it stands alone and is read on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT, COLUMNS, LEGEND = 220, 170, 4, 22
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 26, 26
COLOURS = ("#0072b2", "#56b4e9", "#999999", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000", "#7f3c8d")

# Accuracy in percent by answers over the number of classes.
Curve = Sequence[tuple[float, float]]


def panels(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """The figure.

    Args:
        curves: By panel, then by name; the same names in each get the same colour.
    """
    names = list(dict.fromkeys(name for own in curves.values() for name in own))
    colour = dict(zip(names, COLOURS, strict=False))
    rows = -(-len(curves) // COLUMNS)
    wide, high = WIDTH * COLUMNS, HEIGHT * rows + LEGEND * -(-len(names) // 4)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="11" role="img">']
    parts += ["<title>Accuracy against answers by order of asking</title>", f'<rect width="{wide}" height="{high}" fill="#ffffff"/>']
    for i, (title, own) in enumerate(curves.items()):
        parts.append(f'<g transform="translate({i % COLUMNS * WIDTH} {i // COLUMNS * HEIGHT})">{_panel(title, own, colour)}</g>')
    for i, name in enumerate(names):
        x, y = 12 + i % 4 * WIDTH, HEIGHT * rows + 14 + i // 4 * LEGEND
        parts.append(f'<path d="M{x} {y - 4}h20" stroke="{colour[name]}" stroke-width="3"/><text x="{x + 26}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, curves: Mapping[str, Curve], colour: Mapping[str, str]) -> str:
    points = [point for curve in curves.values() for point in curve]
    last, top = max(x for x, _ in points), max(y for _, y in points)
    low, high = 10 * (min(y for _, y in points) // 10), 10 * -(-top // 10)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / last * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / max(high - low, 1) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for value in (low, high):
        y = place(0, value)[1]
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/><text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>'
        )
    for x in sorted({x for x, _ in points}):
        label = "0" if not x else "C" if x == 1 else f"{x:g}C"
        parts.append(f'<text x="{place(x, low)[0]:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{label}</text>')
    for name, curve in curves.items():
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour[name]}" stroke-width="2"><title>{escape(name)}</title></polyline>')
    return "".join(parts)


def area(curve: Curve) -> float:
    """Mean accuracy over the answers from the first point to the last, by trapezia."""
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    return total / (curve[-1][0] - curve[0][0])
