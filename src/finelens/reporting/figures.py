"""Charts as inline SVG. Every text goes through :meth:`markupsafe.Markup.format`, which escapes it; colours come from the style sheet by class."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 24
# Letters of a name beside a figure.
LONGEST = 20


def share_bar(share: float, mark: float | None = None) -> Markup:
    """A bar of 0 to 1 over the width of its place, with a mark of what it is compared with. The numbers stand beside it as text."""
    bar = Markup('<rect class="bar" x="0" y="2" width="{}%" height="8" rx="2"/>').format(_percent(share))
    tick = Markup("") if mark is None else Markup('<rect class="mark" x="{}%" y="0" width="3" height="12"/>').format(_percent(min(mark, 0.99)))
    return Markup('<svg class="share" width="100%" height="12" aria-hidden="true" focusable="false">{}{}</svg>').format(bar, tick)


def histogram(title: str, counts: Sequence[float], compare: Sequence[float], labels: Sequence[str]) -> Markup:
    """Bars of ``counts`` with a step line of ``compare`` over the same bins; ``labels`` are the edges to write below."""
    highest = max([*counts, *compare, 1e-9])
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    bars = Markup("").join(
        Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            LEFT + i * width + 1, _y(value, highest), width - 2, HEIGHT - BOTTOM - _y(value, highest)
        )
        for i, value in enumerate(counts)
    )
    steps = " ".join(f"{LEFT + (i + side) * width:.1f},{_y(value, highest):.1f}" for i, value in enumerate(compare) for side in (0, 1))
    line = Markup('<polyline class="line second" points="{}"/>').format(steps)
    texts = Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - 8, anchor, label) for x, anchor, label in _spread(labels)
    )
    axis = _axis([(0, "0"), (highest, f"{highest:.0%}")], 0, highest)
    return _svg(title, axis + bars + line + texts)


def line_chart(title: str, series: Sequence[Sequence[float]], *, percent: bool = False) -> Markup:
    """Up to two curves over epochs 1, 2, ...; the second is drawn dashed."""
    values = [value for one in series for value in one]
    bottom, top = min(values), max(values)
    if top - bottom < 1e-9:
        bottom, top = bottom - 0.5, top + 0.5
    count = max(len(one) for one in series)
    step = (WIDTH - LEFT - RIGHT - 8) / max(count - 1, 1)
    shapes = Markup("")
    for number, one in enumerate(series):
        points = [(LEFT + 4 + i * step, _y(value - bottom, top - bottom)) for i, value in enumerate(one)]
        kind = "line second" if number else "line"
        shapes += Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))
        if count <= 20:
            dot = "dot second" if number else "dot"
            shapes += Markup("").join(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(dot, x, y) for x, y in points)
    texts = Markup('<text x="{}" y="{}">epoch 1</text>').format(LEFT, HEIGHT - 8)
    if count > 1:
        texts += Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(WIDTH - RIGHT, HEIGHT - 8, count)
    form = "{:.0%}" if percent and top - bottom > 0.05 else "{:.1%}" if percent else "{:.3g}"
    axis = _axis([(bottom, form.format(bottom)), (top, form.format(top))], bottom, top)
    return _svg(title, axis + shapes + texts)


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Accuracy over confidence: one dot a bin ``(confidence, accuracy, images)``, its area by the images; the diagonal is perfect calibration."""
    side = 320
    span = side - LEFT - RIGHT
    total = max((count for _, _, count in bins), default=1)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * span, side - BOTTOM - y * (side - BOTTOM - TOP)

    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    body = Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/><line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        x0, y0, x1, y0, x0, y0, x0, y1
    )
    body += Markup('<line class="line second" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x0, y0, x1, y1)
    for confidence, accuracy, count in bins:
        x, y = place(confidence, accuracy)
        tip = f"{count} images: mean confidence {confidence:.0%}, accuracy {accuracy:.0%}"
        body += Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
            x, y, 3 + 9 * (count / total) ** 0.5, tip
        )
    body += Markup('<text x="{}" y="{}">0</text><text x="{}" y="{}" text-anchor="end">confidence 100%</text>').format(x0, side - 8, x1, side - 8)
    body += Markup('<text x="{}" y="{}">100%</text><text x="{}" y="{}">0%</text>').format(2, y1 + 10, 2, y0)
    return _svg(title, body, side)


def matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Confusion matrix, rows true and columns predicted; shade by the share of the row, the numbers in the cells' titles."""
    cell, label = (26, 150) if len(names) <= 20 else (15, 130)
    size = label + cell * len(names) + 4
    font = 12 if cell > 20 else 9
    parts = []
    for i, row in enumerate(counts):
        total = sum(row)
        y = label + i * cell
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end" font-size="{}">{}</text>').format(label - 6, y + cell * 0.7, font, shorten(names[i]))
        )
        x = label + i * cell + cell * 0.7
        parts.append(Markup('<text transform="translate({} {}) rotate(-90)" font-size="{}">{}</text>').format(x, label - 6, font, shorten(names[i])))
        for j, count in enumerate(row):
            shade = 0 if not total else min(5, -(-5 * count // total))
            tip = f"{names[i]} read as {names[j]}: {count} of {total}"
            kind = f"cell s{shade}" + (" right" if i == j else "")
            parts.append(
                Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                    kind, label + j * cell, y, cell - 1, cell - 1, tip
                )
            )
    body = Markup("").join(parts)
    return Markup('<svg class="matrix" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        size, size, size, size, title, body
    )


def shorten(name: str) -> str:
    """A name that fits beside a figure."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _percent(share: float) -> str:
    return f"{100 * max(0.0, min(1.0, share)):.2f}"


def _y(value: float, span: float) -> float:
    return HEIGHT - BOTTOM - value / span * (HEIGHT - TOP - BOTTOM)


def _spread(labels: Sequence[str]) -> list[tuple[float, str, str]]:
    last = max(len(labels) - 1, 1)
    anchors = ["start"] + ["middle"] * (len(labels) - 2) + ["end"]
    return [(LEFT + i * (WIDTH - LEFT - RIGHT) / last, anchor, label) for i, (anchor, label) in enumerate(zip(anchors, labels, strict=True))]


def _axis(ticks: Sequence[tuple[float, str]], low: float, high: float) -> Markup:
    lines = Markup("")
    for value, label in ticks:
        y = _y(value - low, high - low)
        lines += Markup('<line class="axis" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(LEFT, y, WIDTH - RIGHT, y)
        lines += Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 5, y + 4, label)
    return lines


def _svg(title: str, body: Markup, height: int = HEIGHT) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, height, title, body)
