"""A scatter plot as inline SVG, its colours taken from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 130, 16, 46
LINE_HEIGHT = 13


@dataclass(frozen=True)
class Point:
    """A labelled point.

    Attributes:
        name: Its label.
        x: Above 0, on a logarithmic scale.
        y: On a linear scale.
    """

    name: str
    x: float
    y: float


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """The figure. Labels keep clear of one another."""
    xs = [math.log10(max(point.x, 1e-3)) for point in points]
    ticks = _log_ticks(min(xs), max(xs))
    x_low, x_high = math.log10(ticks[0]), math.log10(ticks[-1])
    step = _step(max(point.y for point in points) - min(point.y for point in points))
    y_low = step * math.floor(min(point.y for point in points) / step)
    y_high = max(step * math.ceil(max(point.y for point in points) / step), y_low + step)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    about = f"{escape(y_label)} against {escape(x_label)}; the numbers are in the table"
    parts = [f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{about}">']
    for tick in ticks:
        x, bottom = place(math.log10(tick), y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for k in range(round((y_high - y_low) / step) + 1):
        left, y = place(x_low, y_low + k * step)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{y_low + k * step:g}</text>')
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)} (log scale)</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    parts += _labelled([(point, *place(x, point.y)) for point, x in zip(points, xs, strict=True)], x_label, y_label)
    return "<figure>" + "".join(parts) + "</svg></figure>"


def _labelled(placed: Sequence[tuple[Point, float, float]], x_label: str, y_label: str) -> list[str]:
    # A label covers no other label and no point.
    taken = [(x - 6, x + 6, y) for _, x, y in placed]
    parts = []
    for point, x, y in sorted(placed, key=lambda item: item[2]):
        left, right = x + 9, x + 9 + 6.6 * len(point.name)
        spots = (y + sign * step for step in range(HEIGHT) for sign in (1, -1) if y + sign * step >= TOP)
        label = next(spot for spot in spots if all(abs(spot - other) >= LINE_HEIGHT or end <= left or right <= start for start, end, other in taken))
        taken.append((left, right, label))
        about = escape(f"{point.name}: {y_label} {point.y:.1f}; {x_label} {point.x:.3g}")
        parts.append(
            f'<g class="point"><title>{about}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
            f'<line class="lead" x1="{x + 4:.1f}" y1="{y:.1f}" x2="{x + 8:.1f}" y2="{label:.1f}"/>'
            f'<text x="{x + 9:.1f}" y="{label + 4:.1f}">{escape(point.name)}</text></g>'
        )
    return parts


def _step(span: float) -> float:
    """A round distance between ticks that gives four to ten of them."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-6) / 4))
    return next((factor * power for factor in (1, 2, 5) if span / (factor * power) <= 10), 10 * power)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers around an interval of logarithms: 1, 2, 5, 10 and so on, or powers of ten where those are many."""
    for factors in ((1.0, 2.0, 5.0), (1.0,)):
        steps = [factor * 10.0**k for k in range(math.floor(low), math.ceil(high) + 2) for factor in factors]
        first = max((i for i, value in enumerate(steps) if math.log10(value) <= low + 1e-9), default=0)
        last = next(i for i, value in enumerate(steps) if math.log10(value) >= high - 1e-9 and i > first)
        if last - first < 8:
            break
    return steps[first : last + 1]
