"""What rows say: against plain loops over the same rows, and against what the committed results are known to say."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import finelens
from finelens.bench.results import Result, pack, read_results
from finelens.bench.summary import DEFAULT, auto_rows, by_setting, findings, standings, summary
from finelens.errors import UserError
from tests.bench.test_leaderboard import nothing
from tests.bench.test_results import result
from tests.bench.world import key

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
N = 100


def entry(method: str, accuracy: float, data: str = "a", protocol: str = "inductive", **given) -> Result:
    """A row on 100 images whose zero-shot has 50 right; its interval reaches 4 points to either side."""
    seed, options, profile = given.get("seed", 0), given.get("options", ()), given.get("profile", "full")
    split = {
        "checksum": "s",
        "test_checksum": data + protocol,
        "fit": given.get("fit", 100),
        "test": N,
        "classes": 4,
        "labelled": given.get("labelled", 0),
    }
    gain = accuracy - 0.5
    return result(
        key=key(method=method, data=data, protocol=protocol, seed=seed, options=options, profile=profile),
        config={"method": method, "seed": seed},
        split=split,
        measures={"accuracy": accuracy, "n": N, "difference": gain, "difference_interval": [gain - 0.04, gain + 0.04]},
        cost={"no_grad_forwards": (N + split["fit"]) * given.get("forwards", 1), "grad_forwards": 0},
        timing={"seconds": given.get("seconds", 1.0)},
        correct=pack(np.arange(N) < round(accuracy * N)),
    )


def world() -> list[Result]:
    """``ot`` is best on average, ``stata`` never far below, ``zlap`` gains a little for next to nothing."""
    scores = {"zero-shot": (0.5, 0.5, 0.5), "ot": (0.7, 0.4, 0.6), "stata": (0.56, 0.49, 0.5), "zlap": (0.53, 0.48, 0.54), "cupl": (0.5, 0.5, 0.51)}
    seconds = {"zlap": 0.01}
    return [
        entry(method, accuracy, data, protocol, seconds=seconds.get(method, 1.0))
        for method, values in scores.items()
        for accuracy, (data, protocol) in zip(values, (("a", "inductive"), ("b", "inductive"), ("a", "partial-5")), strict=True)
    ]


def said(rows, start: str) -> str:
    return next(line for line in findings(standings(rows), rows) if line.startswith(start))


def test_best_by_mean_worst_case_and_cost():
    rows = world()
    assert said(rows, "Best by mean, inductive").startswith("Best by mean, inductive: `ot`, 55.0, +5.0 [")
    assert said(rows, "Best by mean, inductive").endswith("against zero-shot; then `stata`, 52.5.")
    assert said(rows, "Best by mean, partial-5").startswith("Best by mean, partial-5: `ot`, 60.0, +10.0 [")
    # ot falls by 10 on b. cupl, which adapts to nothing, is not what a worst case is asked of.
    assert "`stata`, furthest below zero-shot -1.0 (b, inductive), 0 of 3 rows" in said(rows, "Best by worst case")
    assert "No row wholly below: `stata`, `zlap`." in said(rows, "Best by worst case")
    cost = said(rows, "Best by cost")
    assert "`ot` gains most per forward (+6.7 points with 1 forwards an image)" in cost
    assert "`zlap` gains most per second (+1.7 points with 0.01 seconds a run" in cost


def test_standings_are_plain_means_and_counts():
    rows = [*world(), entry("ot", 0.8, "a", seed=1)]
    table = {one.method: one for one in standings(rows)}
    assert table["ot"].means == pytest.approx({"inductive": ((0.7 + 0.8) / 2 + 0.4) / 2, "partial-5": 0.6})
    assert table["ot"].gain == pytest.approx((0.25 - 0.1 + 0.1) / 3)
    assert (table["ot"].below, table["ot"].rows, table["ot"].worst) == (1, 4, "-10.0 (b, inductive)")
    assert (table["stata"].below, table["stata"].rows) == (0, 3)


def test_whether_the_default_falls_below_zero_shot():
    assert inspect.signature(finelens.adapt).parameters["method"].default == DEFAULT
    assert said(world(), "The default").endswith("was not run.")
    rows = [*world(), entry(DEFAULT, 0.55), entry(DEFAULT, 0.49, "b")]
    assert said(rows, "The default").endswith("falls below zero-shot in 1 of 2 rows, furthest -1.0 on b, inductive; wholly below in 0.")
    assert said(rows[:-1], "The default").endswith("falls below zero-shot in none of 1 rows.")
    # It lacks a set: no mean of it stands beside those of the others.
    assert f"`{DEFAULT}`" in said(rows, "Not compared")


def test_auto_is_what_its_rule_would_take():
    rows = [
        entry("tip-adapter", 0.6),
        entry("cupl", 0.5),
        entry("gda", 0.7),
        entry("tip-adapter", 0.3, "b", fit=49),
        entry("cupl", 0.44, "b", fit=49),
    ]
    rows += [entry(method, 0.6, "a", "fewshot-1", labelled=4) for method in ("gda", "tip-adapter")]
    assert [(row.key.data, row.key.protocol, row.key.method) for row in auto_rows(rows)] == [
        ("a", "inductive", "tip-adapter"),
        ("b", "inductive", "cupl"),
        ("a", "fewshot-1", "gda"),
    ]
    assert "takes `tip-adapter`, `cupl`, `gda` here, falls below zero-shot in 1 of 3 rows, furthest -6.0 on b, inductive; wholly below in 1." in said(
        rows, "`--method auto`"
    )


def test_a_method_that_answers_no_stream_is_no_worse_for_it():
    rows = [*world(), entry("onzeta", 0.9, "a", "online"), entry("zero-shot", 0.5, "a", "online")]
    assert said(rows, "Best by mean, online").startswith("Best by mean, online: `onzeta`")
    assert "`ot`" not in said(rows, "Not compared")
    assert "`ot`" in said(rows, "Best by cost")


def test_profiles_and_options_do_not_mix():
    rows = [*world(), entry("ot", 0.9, options=("method.x=1",)), entry("ot", 0.8, profile="small")]
    assert [setting[1:] for setting in by_setting(rows)] == [("full", ()), ("full", ("method.x=1",)), ("small", ())]
    text = summary(rows)
    assert text.count("### ") == 3
    assert "### embedded, profile full, not the defaults: method.x=1" in text
    parts = dict(zip(("full", "changed", "small"), text.split("### ")[1:], strict=True))
    assert "| `ot` | 55.0 | 60.0 |" in parts["full"]
    assert "| `ot` | 90.0 |" in parts["changed"]
    # Zero-shot of the other profile is still what a gain is measured against.
    assert "`ot`, 80.0, +30.0 [" in parts["small"]


def test_nothing_to_say():
    with pytest.raises(UserError, match="no result"):
        summary([nothing("ot", "a")])


def test_what_the_committed_results_say():
    """Both files at once: profiles and options stand apart, and every number is that of a plain loop."""
    rows = read_results([RESULTS / "bench_training_free.jsonl", RESULTS / "bench_training.jsonl"])
    settings = by_setting(rows)
    assert len(settings) >= 2
    for setting, own in settings.items():
        assert {(row.key.backbone, row.key.profile, row.key.options) for row in own} == {setting}
        for one in standings(own):
            mine = [row for row in own if row.key.method == one.method]
            assert one.lowest.measures["difference"] == min(row.measures["difference"] for row in mine)
            assert one.below == sum(row.measures["difference_interval"][1] < 0 for row in mine)
    full = settings["embedded", "full", ()]
    best = max(standings(full), key=lambda one: one.means.get("inductive", 0))
    assert f"`{best.method}`, {100 * best.means['inductive']:.1f}" in said(full, "Best by mean, inductive")
