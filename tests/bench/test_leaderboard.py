from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from finelens.bench.rows.matrix import describe
from finelens.bench.rows.results import pack
from finelens.bench.tables.compare import compare_files, compare_methods
from finelens.bench.tables.leaderboard import leaderboard, lines_of
from finelens.bench.tables.paired import mean_difference, paired_difference
from finelens.bench.tables.scatter import Point, scatter
from finelens.bench.tables.summary import summary
from finelens.bench.tables.table import markdown_runs, markdown_tables
from finelens.errors import UserError
from finelens.evaluation.metrics import mcnemar, paired_bootstrap
from tests.bench.test_results import result
from tests.bench.world import key

RNG = np.random.default_rng(0)
HITS = {name: RNG.random(200) < share for name, share in (("zero-shot", 0.5), ("ot", 0.6), ("cupl", 0.4))}
VOID = {"meta", "line", "circle"}


def entry(method: str, data: str = "a", seed: int = 0, hits=None, test: str = "t", **changes):
    hits = HITS[method] if hits is None else hits
    return result(
        key=key(method=method, data=data, seed=seed, **changes),
        config={"method": method, "seed": seed},
        split={"checksum": "s", "test_checksum": test, "fit": 10, "test": len(hits)},
        measures={
            "accuracy": float(hits.mean()),
            "n": len(hits),
            "difference": float(hits.mean() - HITS["zero-shot"].mean()),
            "difference_interval": list(paired_bootstrap(hits, HITS["zero-shot"])),
        },
        cost={"no_grad_forwards": 210, "grad_forwards": 0},
        timing={"seconds": 1.0, "seconds_per_shared_forward": 0.1},
        correct=pack(hits),
    )


def nothing(method: str, data: str, reason: str = "too small"):
    about = {"config": {"method": method, "seed": 0}, "reason": reason, "measures": {}, "correct": ""}
    return result(key=key(method=method, data=data), status="skipped", **about)


def test_one_seed_is_the_paired_bootstrap_and_the_exact_test():
    found = paired_difference([entry("ot")], [entry("zero-shot")])
    assert found is not None
    assert found.difference == pytest.approx(HITS["ot"].mean() - HITS["zero-shot"].mean())
    assert (found.low, found.high) == pytest.approx(paired_bootstrap(HITS["ot"], HITS["zero-shot"]), abs=0.01)
    assert found.p == mcnemar(HITS["ot"], HITS["zero-shot"])


def test_seeds_that_ask_about_the_same_images_make_the_interval_no_narrower():
    one = paired_difference([entry("ot")], [entry("zero-shot")])
    same = paired_difference([entry("ot", seed=k) for k in range(5)], [entry("zero-shot", seed=k) for k in range(5)])
    other = paired_difference([entry("ot", seed=k, test=str(k)) for k in range(5)], [entry("zero-shot", seed=k, test=str(k)) for k in range(5)])
    assert one is not None and same is not None and other is not None  # noqa: PT018
    assert (same.low, same.high, same.p) == (one.low, one.high, None)
    assert other.high - other.low < 0.6 * (one.high - one.low)


def test_only_rows_about_the_same_images_are_compared():
    assert paired_difference([entry("ot")], [entry("zero-shot", test="other")]) is None
    # waffle draws words by the seed; so may any method but zero-shot.
    assert paired_difference([entry("ot")], [entry("cupl", seed=1)]) is None
    assert paired_difference([entry("ot", seed=1)], [entry("zero-shot", test="other"), entry("zero-shot", seed=1, test="other")]) is None
    assert paired_difference([entry("ot")], [nothing("zero-shot", "a")]) is None


def test_one_row_of_zero_shot_serves_all_seeds_that_ask_about_its_images():
    hits = [np.roll(HITS["ot"], k) for k in range(3)]
    rows = [entry("ot", seed=k, hits=hits[k]) for k in range(3)]
    found, turned = paired_difference(rows, [entry("zero-shot")]), paired_difference([entry("zero-shot")], rows)
    assert found is not None and turned is not None  # noqa: PT018
    assert (found.seeds, turned.seeds) == (3, 3)
    assert found.difference == pytest.approx(np.mean(hits) - HITS["zero-shot"].mean()) == -turned.difference
    every = paired_difference(rows, [entry("zero-shot", seed=k) for k in range(3)])
    assert every is not None
    assert (found.low, found.high) == (every.low, every.high)
    # Its own row of a seed goes before.
    own = paired_difference(rows[1:2], [entry("zero-shot", seed=1, hits=HITS["cupl"]), entry("zero-shot")])
    assert own is not None
    assert own.b == HITS["cupl"].mean()


def test_one_row_of_zero_shot_in_tables_and_comparisons():
    hits = [np.roll(HITS["ot"], k) for k in range(3)]
    seeds = [entry("ot", seed=k, hits=hits[k], profile="small") for k in range(3)]
    rows = [*seeds, entry("zero-shot")]
    line = next(line for line in lines_of(seeds, [rows[-1]]) if line.method == "ot")
    assert line.gain["a"].seeds == line.seeds == 3
    # Another profile than zero-shot's.
    text = compare_methods(rows, "ot", "zero-shot")
    assert f"| a | {100 * np.mean(hits):.1f} | {100 * HITS['zero-shot'].mean():.1f} |" in text
    assert text.splitlines()[4].endswith("| 3 |")


def test_an_accuracy_over_three_seeds_has_no_difference_over_one():
    rows = [entry("ot", seed=k, test=str(k)) for k in range(3)]
    assert lines_of([*rows, entry("zero-shot", test="0")])[0].gain == {}


def test_a_mean_over_sets_is_surer_than_one_set():
    parts = [paired_difference([entry("ot", data)], [entry("zero-shot", data)]) for data in "abcd"]
    whole = mean_difference([part for part in parts if part is not None])
    assert whole.difference == pytest.approx(parts[0].difference)
    assert whole.high - whole.low == pytest.approx((parts[0].high - parts[0].low) / 2, rel=0.15)


def test_compare_methods_and_files():
    rows = [entry(method, data) for method in HITS for data in "ab"]
    text = compare_methods(rows, "ot", "cupl")
    difference = 100 * (HITS["ot"].mean() - HITS["cupl"].mean())
    assert len(re.findall(rf"\| {100 * HITS['ot'].mean():.1f} \| {100 * HITS['cupl'].mean():.1f} \| \{difference:+.1f} \|", text)) == 3
    assert "| mean |" in text
    changed = [entry("ot", "a", hits=HITS["cupl"]), entry("ot", "a", seed=3)]
    text = compare_files(rows, changed)
    assert text.count("###") == 1
    assert "profile full: ot" in text
    for wrong in (lambda: compare_methods(rows, "ot", "dpa"), lambda: compare_files(rows, [entry("ot", "z")])):
        with pytest.raises(UserError):
            wrong()


class Checker(HTMLParser):
    """Counts tags and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_needs_nothing_else():
    rows = [entry(method, data, seed) for method in HITS for data in "ab" for seed in (0, 1)] + [nothing("dpa", "a"), entry("ot", protocol="online")]
    page = leaderboard(rows)
    checker = parse(page)
    assert not any(name in ("src", "href") and not str(value).startswith("#") for _, attributes in checker.tags for name, value in attributes.items())
    assert not {"img", "link", "iframe"} & {tag for tag, _ in checker.tags}
    # Two tables, and one on both.
    assert sum(tag == "table" for tag, _ in checker.tags) == 3
    assert sum(tag == "svg" for tag, _ in checker.tags) == 1
    assert "@" not in re.sub(r"@media", "", page)
    # Every column can be sorted with the keyboard.
    assert sum(tag == "button" for tag, _ in checker.tags) == sum(tag == "th" and a.get("scope") == "col" for tag, a in checker.tags)


def test_names_and_reasons_are_escaped():
    evil = '<script>alert("x")</script>@ORIGIN@'
    rows = [entry("ot", evil), entry("zero-shot", evil, options=(evil,)), nothing("dpa", evil, f"{evil}: y")]
    page = leaderboard(rows)
    parse(page)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page


def test_lines_say_cost_and_what_is_missing():
    lines = {line.method: line for line in lines_of([entry("ot"), entry("ot", "b"), entry("zero-shot"), nothing("zero-shot", "b")])}
    assert lines["ot"].seconds == pytest.approx(1 + 21)
    assert lines["ot"].forwards == 1
    assert set(lines["ot"].gain) == {"a"}
    assert lines["zero-shot"].notes == {"b": "skipped: too small"}


def test_an_empty_file_has_no_page():
    with pytest.raises(UserError, match="no result"):
        leaderboard([nothing("ot", "a")])


def test_labels_of_points_in_one_place_keep_clear_of_one_another():
    svg = scatter([Point(f"method {k}", 1.0, 50 + 0.01 * k) for k in range(10)] + [Point("beside", 1.1, 50), Point("far", 1000, 70)], "s", "%")
    heights = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)">method', svg))
    assert min(np.diff(heights)) >= 12
    assert svg.count("<circle") == 12
    # Nor does one cover a point.
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(\w[^<]*)</text></g>', svg):
        for across, down in points:
            assert not (float(x) < across < float(x) + 6 * len(name) and abs(float(y) - 4 - down) < 8), name
    assert "nan" not in scatter([Point("a", 0, 0.0), Point("b", 0, 0.0)], "s", "%")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(22, 90, [20, 50, 100]), (1, 1, [1, 2]), (0.03, 4, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]), (0.5, 20000, [0.1, 1, 10, 100, 1000, 10000, 100000])],
)
def test_the_axis_of_costs_has_round_ticks_around_all_points(low, high, ticks):
    svg = scatter([Point("a", low, 1.0), Point("b", high, 2.0)], "s", "%")
    assert [float(x) for x in re.findall(r'text-anchor="middle">([\d.e+-]+)</text>', svg)] == pytest.approx(ticks)


def test_the_best_mean_comes_first_and_zero_shot_of_another_profile_is_the_baseline():
    """Zero-shot adapts to nothing: on the same test images it is the same row."""
    rows = [entry("zero-shot", data) for data in "ab"]
    rows += [entry(method, data, profile="small") for method in ("cupl", "ot") for data in "ab"] + [
        entry("gda", "a", hits=HITS["ot"], profile="small")
    ]
    page = leaderboard(rows)
    small = page[page.index("<h2>inductive, embedded, profile small") :]
    assert re.findall(r'<th scope="row" data-value="([\w-]+)"', small)[:3] == ["ot", "cupl", "gda"]
    gain = 100 * (HITS["ot"].mean() - HITS["zero-shot"].mean())
    assert f"{gain:+.1f} [" in small
    assert small.count('aria-sort="descending"') == 1
    # Options make a table of their own, and no baseline.
    changed = leaderboard([entry("zero-shot", options=("text.x=1",)), entry("ot")])
    assert f"{gain:+.1f} [" not in changed


def test_a_set_to_which_a_protocol_does_not_apply_is_said_once_and_counts_nowhere():
    rows = [entry("ot"), entry("zero-shot"), nothing("ot", "b"), nothing("zero-shot", "b")]
    page = leaderboard(rows)
    assert "Everything was skipped on b: too small." in page
    assert [set(line.accuracy) for line in lines_of(rows)] == [{"a"}, {"a"}]
    assert "not run on every set" not in page


def test_a_table_in_which_everything_was_skipped_breaks_nothing():
    elsewhere = replace(nothing("ot", "b"), key=key(method="ot", data="b", protocol="partial-10"))
    rows = [entry("ot"), entry("zero-shot"), elsewhere]
    assert "partial-10" in leaderboard(rows)
    text = markdown_tables(rows)
    assert "- ot skipped on b: too small." in text
    header, ruler, *body = [line for line in text.splitlines() if line.startswith("|") and "b" not in line][-3:]
    assert {line.count("|") for line in (header, ruler, *body)} == {6}


def test_a_table_says_so_where_methods_differ_in_seeds():
    said = "Not all methods have the same seeds"
    assert said not in leaderboard([entry("ot"), entry("cupl"), entry("ot", seed=1), entry("cupl", seed=1)])
    # One seed each, but not the same one.
    assert said in leaderboard([entry("ot"), entry("cupl", seed=1)])
    # Both have both seeds, but not on every set.
    rows = [entry("ot"), entry("ot", seed=1), entry("ot", "b"), *(entry("cupl", data, seed=k) for data in "ab" for k in (0, 1))]
    assert "seeds: 0, 1 on a and 0 on b: ot; 0, 1: cupl." in markdown_tables(rows)


def test_zero_shot_of_another_seed_has_other_names_where_the_seed_draws_them():
    rows = [entry("ot", seed=2, protocol="noise-2")], [entry("zero-shot", protocol="noise-2")]
    assert paired_difference(*rows) is None
    assert paired_difference(rows[0], [entry("zero-shot", seed=2, protocol="noise-2")]) is not None


def test_files_are_compared_by_equal_keys_alone():
    one, three = [entry("zero-shot")], [entry("zero-shot", seed=k, hits=np.roll(HITS["zero-shot"], k)) for k in range(3)]
    line = compare_files(one, three).splitlines()[4]
    assert line.endswith("| 1 | 1 |")


def test_every_view_of_results_has_zero_shot_as_its_baseline():
    """Where descriptions alone do better than zero-shot, the measure ``gain`` is another number, and none of them shows it."""
    other = {"gain": 0.0123, "gain_interval": [0.0111, 0.0222], "zero_shot_accuracy": 0.5, "description_ensemble_accuracy": 0.6}
    rows = [replace(row, measures={**row.measures, **other}) for row in (entry("zero-shot"), entry("ot"))]
    difference = f"{100 * (HITS['ot'].mean() - HITS['zero-shot'].mean()):+.1f}"
    views = [
        markdown_tables(rows),
        markdown_runs(rows),
        summary(rows),
        leaderboard(rows),
        compare_methods(rows, "ot", "zero-shot"),
        describe(rows[1]),
    ]
    for view in views:
        assert difference in view
        assert "zero-shot" in view
        assert not re.search(r"\+1\.[12]\b|gain\b", view), view
    assert "over the better of zero-shot and descriptions" in markdown_tables(rows, "gain")
