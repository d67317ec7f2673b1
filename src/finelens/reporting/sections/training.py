"""What training did, epoch by epoch, and what in it is alarming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from finelens.reporting import figures
from finelens.reporting.record import RunRecord


@dataclass(frozen=True)
class Curve:
    """One chart: names of its one or two numbers in the epoch events, its heading, how to read it, and whether they are shares."""

    names: tuple[str, ...]
    heading: str
    meaning: str
    share: bool


CURVES = (
    Curve(("loss",), "Loss", "mean over the epoch", False),
    Curve(("zero_shot_agreement",), "Agreement with zero-shot", "share of pseudo-labels equal to the zero-shot class", True),
    Curve(("pseudo_confidence",), "Confidence of the pseudo-labels", "mean probability of the pseudo-label", True),
    Curve(("pseudo_stability",), "Stability of the pseudo-labels", "share of images that kept their pseudo-label since the last epoch", True),
    Curve(("agreement",), "Student and pseudo-label", "share of strong views whose prediction is the pseudo-label", True),
    Curve(("pseudo_largest",), "Largest pseudo-class", "share of the images that it holds; a steep rise is a collapse", True),
    Curve(("prior_largest", "prior_smallest"), "Estimated class prior", "largest and smallest class (dashed)", True),
)


def build(record: RunRecord) -> dict[str, Any] | None:
    """Charts and alarms; None where nothing was trained."""
    epochs = record.epochs
    if not epochs:
        return None
    charts = [chart for curve in CURVES if (chart := _chart(curve, epochs))]
    return {"epochs": len(epochs), "charts": charts, "warnings": [event["message"] for event in record.events if event["event"] == "warning"]}


def _chart(curve: Curve, epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    series = [[float(epoch[name]) for epoch in epochs if _number(epoch.get(name))] for name in curve.names]
    if not all(series):
        return None
    form = "{:.1%}" if curve.share else "{:.3g}"
    ends = " and ".join(f"{form.format(one[0])} to {form.format(one[-1])}" for one in series)
    title = f"{curve.heading} over {len(epochs)} epochs: {ends}"
    svg: Markup = figures.line_chart(title, series, percent=curve.share)
    return {"heading": curve.heading, "meaning": curve.meaning, "svg": svg, "ends": ends}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
