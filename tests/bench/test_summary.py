"""What rows say: against plain loops over the same rows, and against what the committed results are known to say."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import finelens
from finelens.bench.rows.results import Result, pack, read_results
from finelens.bench.tables.summary import DEFAULT, auto_rows, by_setting, common, findings, standings, summary
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
        "test_checksum": given.get("test", data + protocol),
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
    assert said(rows, "Best by mean, inductive").startswith("Best by mean, inductive (2 sets, seed 0): `ot`, 55.0, +5.0 [")
    assert said(rows, "Best by mean, inductive").endswith("against zero-shot; then `stata`, 52.5.")
    assert said(rows, "Best by mean, partial-5").startswith("Best by mean, partial-5 (1 set, seed 0): `ot`, 60.0, +10.0 [")
    # ot falls by 10 on b. cupl, which adapts to nothing, is not what a worst case is asked of.
    assert "`stata`, at worst -1.0 (b, inductive) against zero-shot, 0 of 3 rows" in said(rows, "Best by worst case")
    assert "No row wholly below: `stata`, `zlap`." in said(rows, "Best by worst case")
    cost = said(rows, "Best by cost")
    assert "`ot` gains most per forward (+6.7 against zero-shot with 1 forwards an image)" in cost
    assert "`zlap` gains most per second (+1.7 against zero-shot with 0.01 seconds a run" in cost


def test_standings_are_plain_means_and_counts():
    rows = world()
    table = {one.method: one for one in standings(rows)}
    assert table["ot"].means == pytest.approx({"inductive": (0.7 + 0.4) / 2, "partial-5": 0.6})
    assert table["ot"].gain == pytest.approx((0.2 - 0.1 + 0.1) / 3)
    assert (table["ot"].below, table["ot"].rows, table["ot"].worst) == (1, 3, "-10.0 (b, inductive)")
    assert (table["stata"].below, table["stata"].rows) == (0, 3)


def draws(method: str, accuracies, zero_shot=(0.5, 0.2, 0.2)) -> list[Result]:
    """Rows of seeds that ask about other images each; seeds 1 and 2 drew harder ones."""
    rows = [entry(method, accuracy, protocol="partial-5", seed=k, test=f"draw {k}") for k, accuracy in enumerate(accuracies)]
    gains = [accuracy - first for accuracy, first in zip(accuracies, zero_shot, strict=False)]
    changed = [{"difference": gain, "difference_interval": [gain - 0.04, gain + 0.04]} for gain in gains]
    return [replace(row, measures={**row.measures, **own}) for row, own in zip(rows, changed, strict=True)]


def test_methods_are_compared_on_the_seeds_that_all_have():
    rows = [*draws("zero-shot", (0.5, 0.2, 0.2)), *draws("ot", (0.7, 0.3, 0.1)), *draws("stata", (0.6,)), *draws("zlap", (0.55,))]
    assert common(rows)["partial-5"].seeds == (0,)
    table = {one.method: one for one in standings(rows)}
    # Over its three draws ot has 36.7, which says nothing against the 60.0 that stata has on the first.
    assert {name: one.means["partial-5"] for name, one in table.items()} == {"zero-shot": 0.5, "ot": 0.7, "stata": 0.6, "zlap": 0.55}
    assert {(one.rows, one.complete) for one in table.values()} == {(1, True)}
    assert said(rows, "Best by mean").startswith("Best by mean, partial-5 (1 set, seed 0): `ot`, 70.0, +20.0 [")
    assert "furthest below zero-shot `ot`, -10.0 (a, partial-5, seed 2); wholly below 1, of `ot`." in said(
        rows, "Left out of these comparisons: 2 rows"
    )
    assert "| method | partial-5 (1 set, seed 0) |" in summary(rows)
    everywhere = [row for row in rows if row.key.method in ("zero-shot", "ot")]
    assert common(everywhere)["partial-5"].title == "1 set, seeds 0, 1, 2"
    assert not any(line.startswith("Left out") for line in findings(standings(everywhere), everywhere))


def test_a_method_with_other_seeds_is_not_compared_and_turns_nobody_out():
    rows = [*draws("zero-shot", (0.5, 0.2)), *draws("ot", (0.7, 0.3)), *draws("stata", (0.6, 0.3)), draws("zlap", (0, 0, 0.9))[2]]
    assert common(rows)["partial-5"].seeds == (0, 1)
    table = {one.method: one for one in standings(rows)}
    assert (table["zlap"].means, table["zlap"].complete, table["ot"].complete) == ({}, False, True)
    assert "`zlap`" in said(rows, "Not compared")


def test_seeds_that_zero_shot_lacks_are_compared_all_the_same():
    rows = [*draws("zero-shot", (0.5,)), *draws("ot", (0.7, 0.3, 0.1)), *draws("stata", (0.6, 0.1, 0.1))]
    assert common(rows)["partial-5"].seeds == (0, 1, 2)
    # No pairs for two of the draws: the gain is that of the rows themselves.
    assert said(rows, "Best by mean").endswith("(1 set, seeds 0, 1, 2): `ot`, 36.7, +6.7 against zero-shot; then `stata`, 26.7.")
    assert common(draws("zero-shot", (0.5, 0.2)))["partial-5"].seeds == (0, 1)


def test_one_row_of_zero_shot_leaves_no_seed_out_where_the_images_are_the_same():
    rows = [entry("zero-shot", 0.5), *(entry(name, accuracy, seed=k) for name, accuracy in (("ot", 0.7), ("stata", 0.6)) for k in range(3))]
    assert common(rows)["inductive"].seeds == (0, 1, 2)
    assert {one.method for one in standings(rows) if one.complete} == {"zero-shot", "ot", "stata"}
    assert said(rows, "Best by mean").startswith("Best by mean, inductive (1 set, seeds 0, 1, 2): `ot`, 70.0, +20.0 [")


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
    assert said(rows, "Best by mean, online").startswith("Best by mean, online (1 set, seed 0): `onzeta`")
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
        shared = common(own)
        runs = {(row.key.protocol, row.key.method) for row in own if row.key.method != "zero-shot"}
        usual = [name for name in shared if 2 * sum(protocol == name for protocol, _ in runs) >= len({method for _, method in runs})]
        for one in standings(own):
            # Where no method was run on every set there is nothing in common, and each is told by itself.
            mine = [row for row in own if row.key.method == one.method and row.key.seed in (shared[row.key.protocol].seeds or (row.key.seed,))]
            judged = [row for row in mine if row.key.protocol in usual] or mine
            assert one.lowest.measures["difference"] == min(row.measures["difference"] for row in judged)
            assert one.below == sum(row.measures["difference_interval"][1] < 0 for row in judged)
            for protocol, value in one.means.items():
                found = [row.measures["accuracy"] for row in mine if row.key.protocol == protocol]
                assert value == pytest.approx(np.mean(found))
                assert len(found) == len(shared[protocol].sets) * len(shared[protocol].seeds)
    full = settings["embedded", "full", ()]
    best = max(standings(full), key=lambda one: one.means.get("inductive", 0))
    assert f"`{best.method}`, {100 * best.means['inductive']:.1f}" in said(full, "Best by mean, inductive")


def test_methods_that_were_asked_about_other_images_break_nothing():
    text = summary([entry("ot", 0.6, test="x"), entry("stata", 0.7, test="y"), entry("zero-shot", 0.5, test="x")])
    assert "`ot`" in text
    assert "`stata`" in text


def test_a_protocol_under_which_only_zero_shot_was_run_hides_no_other():
    rows = [entry("ot", 0.6), entry("zero-shot", 0.5), entry("zero-shot", 0.4, protocol="partial-5")]
    text = summary(rows)
    assert "Best by mean, inductive (1 set, seed 0): `ot`, 60.0" in text
    assert "Best by mean, partial-5 (1 set, seed 0): `zero-shot`, 40.0; no method is better." in text
    assert "for want of rows" not in text
    assert "Best by cost: `ot`" in text


def test_rows_that_are_left_out_are_told_in_plain_words():
    both = [entry(method, 0.6) for method in ("ot", "stata")]
    assert "Left out of these comparisons: 1 row of other seeds, none below zero-shot." in summary([*both, entry("ot", 0.6, seed=1)])
    assert "Left out" not in summary([*both, entry("zero-shot", 0.5, seed=1, test="other")])


def test_a_study_of_one_method_makes_no_other_incomplete():
    rows = [entry(method, 0.6 + k / 100, data) for k, method in enumerate(("ot", "stata", "zlap")) for data in "ab"]
    rows += [entry("stata", 0.9, protocol="longtail-50"), entry("stata", 0.1, data="b", protocol="longtail-50")]
    text = summary(rows)
    assert "Best by mean, longtail-50" in text
    assert "for want of rows" not in text
    # Its own protocol does not count against it either.
    assert "Best by worst case, of methods that adapt: `zlap`, at worst +12.0 (a, inductive) against zero-shot" in text
    assert {one.method: one.rows for one in standings(rows)} == {"ot": 2, "stata": 2, "zlap": 2}
