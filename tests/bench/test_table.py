from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finelens.bench.rows.measures import NUMBERS, SHARES
from finelens.bench.rows.results import only_methods, read_results
from finelens.bench.tables.paired import unique
from finelens.bench.tables.table import markdown_runs, markdown_tables
from finelens.errors import UserError
from tests.bench.test_results import result
from tests.bench.world import key

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def entry(method: str, data: str, accuracy: float, seed: int = 0, difference: float = 0.0, **changes):
    return result(
        key=key(method=method, data=data, seed=seed, **changes),
        config={"method": method, "seed": seed},
        split={"checksum": "s", "fit": 10, "test": 10},
        measures={"accuracy": accuracy, "difference": difference, "nll": 1.5},
        cost={"no_grad_forwards": 20, "grad_forwards": 40},
        timing={"seconds": 2.0},
    )


def skipped(method: str, data: str):
    return replace(entry(method, data, 0), status="skipped", reason="too small", measures={}, correct="")


def with_measures(row, **measures):
    return replace(row, measures={**row.measures, **measures})


def cells(text: str, method: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {method} "))


def test_cells_are_means_over_seeds_and_the_mean_is_over_sets():
    rows = [entry("ot", "a", 0.5, 0), entry("ot", "a", 0.6, 1, -0.02), entry("ot", "b", 0.7, 0, 0.03)]
    assert cells(markdown_tables(rows), "ot") == ["ot", "55.0 ± 5.0", "70.0", "62.5", "-1.0", "5.0", "2.0"]
    assert cells(markdown_tables(rows, "nll"), "ot")[1:4] == ["1.500", "1.500", "1.500"]


def test_a_missing_cell_says_so_and_there_is_no_mean():
    text = markdown_tables([entry("ot", "a", 0.5), skipped("ot", "b"), entry("cupl", "a", 0.4), entry("cupl", "b", 0.4)])
    assert cells(text, "ot")[1:5] == ["50.0", "skipped", "-", "-"]
    assert cells(text, "cupl")[3] == "40.0"
    assert "- ot skipped on b: too small." in text


def test_a_row_without_the_measure_has_an_empty_cell_and_its_method_no_mean():
    """Methods on many views have no temperature: they stand in one table with methods that have."""
    rows = [with_measures(entry("ot", data, 0.5), calibrated_nll=1.25) for data in "ab"]
    rows += [entry("mta", "a", 0.5), with_measures(entry("tda", "a", 0.5), calibrated_nll=2.5), entry("tda", "b", 0.5)]
    rows += [with_measures(entry("ot", "c", 0.5, seed), **({"calibrated_nll": 1.0} if seed else {})) for seed in (0, 1)]
    text = markdown_tables(rows, "calibrated_nll")
    assert cells(text, "ot")[1:6] == ["1.250", "1.250", "-", "-", "+0.0"]
    assert cells(text, "mta")[1:6] == ["-", "-", "-", "-", "-"]
    assert cells(text, "tda")[1:5] == ["2.500", "-", "-", "-"]
    assert "calibrated_nll, mean over seeds" in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bench_*.jsonl")), ids=lambda path: path.stem)
def test_every_measure_of_the_committed_results_has_a_unit_and_a_table(path):
    rows = read_results([path])
    found = {name for row in rows for name, value in row.measures.items() if isinstance(value, int | float)}
    assert found <= SHARES | NUMBERS
    for name in found:
        unit = ", per cent," if name in SHARES else ", mean"
        assert f"\n{name}{unit}" in markdown_tables(rows, name)


def test_seeds_are_named_where_methods_differ_in_them():
    rows = [entry("ot", "a", 0.5, 0), entry("ot", "a", 0.5, 1), entry("tda", "a", 0.5), skipped("dpa", "a")]
    assert "- Not all have the same seeds: 0, 1: ot; 0: tda." in markdown_tables(rows)
    assert "same seeds" not in markdown_tables(rows[:2])


def test_what_is_not_comparable_stands_in_tables_of_its_own():
    rows = [
        entry("ot", "a", 0.5),
        entry("ot", "a", 0.5, protocol="online"),
        entry("ot", "a", 0.5, options=("method.x=1",)),
        entry("ot", "a", 0.5, profile="small"),
    ]
    text = markdown_tables(rows)
    assert text.count("### ") == 4
    assert "### inductive, embedded, profile full, not the defaults: method.x=1" in text


def test_of_equal_rows_the_last_counts():
    assert [row.measures["accuracy"] for row in unique([entry("ot", "a", 0.1), entry("ot", "a", 0.2)])] == [0.2]


def test_mistakes():
    with pytest.raises(UserError, match="unknown measure"):
        markdown_tables([entry("ot", "a", 0.5)], "acuracy")
    with pytest.raises(UserError, match="no result"):
        markdown_tables([skipped("ot", "a")])
    with pytest.raises(UserError, match="no result"):
        markdown_runs([skipped("ot", "a")])
    with pytest.raises(UserError, match="no result of otto; there are ot, cupl"):
        only_methods([entry("ot", "a", 0.5), entry("cupl", "a", 0.5)], ["ot", "otto"])


def test_seconds_are_those_of_a_run_that_shares_no_encoding():
    shared = replace(entry("ot", "a", 0.5), timing={"seconds": 2.0, "seconds_per_shared_forward": 0.5})
    assert cells(markdown_tables([shared]), "ot")[-1] == "12.0"


def run(method: str, data: str, accuracy: float, **measures):
    row = entry(method, data, accuracy)
    own = {"zero_shot_accuracy": 0.25, "difference": accuracy - 0.25, "difference_interval": [-0.01, 0.0625], **measures}
    return replace(row, measures={**row.measures, **own})


def test_runs_are_shown_one_by_one_with_their_branches():
    rows = [
        run("microclip", "a", 0.5, description_ensemble_accuracy=0.3, branches={"global": 0.4, "fine": 0.45}),
        run("ot", "a", 0.31),
        skipped("fair", "a"),
    ]
    text = markdown_runs(rows)
    assert cells(text, "method")[4:] == ["zero-shot", "descriptions", "accuracy", "global", "fine", "difference", "95 % interval", "s"]
    assert cells(text, "microclip") == ["microclip", "a", "0", "10 / 10", "25.0", "30.0", "50.0", "40.0", "45.0", "+25.0", "-1.0 to +6.2", "2"]
    assert cells(text, "ot")[4:10] == ["25.0", "-", "31.0", "-", "-", "+6.0"]
    assert "fair" not in text


def test_a_set_to_which_a_protocol_does_not_apply_has_no_column():
    text = markdown_tables([entry("ot", "a", 0.5), skipped("ot", "b"), entry("cupl", "a", 0.4), skipped("cupl", "b")])
    assert cells(text, "method")[1:3] == ["a", "mean"]
    assert cells(text, "ot")[1:3] == ["50.0", "50.0"]
    assert "- ot, cupl skipped on b: too small." in text
