from __future__ import annotations

import numpy as np
import pytest

from finelens.classes.groups import read_groups
from finelens.errors import UserError
from finelens.evaluation.groups import judge_groups

CLASSES = ("sick", "well")


def answers(counts: list[tuple[str, int, int, int]]):
    """Targets, probabilities and groups from (group, target, answer, images)."""
    rows = [(group, target, answer) for group, target, answer, n in counts for _ in range(n)]
    p = np.array([[0.9, 0.1] if answer == 0 else [0.1, 0.9] for _, _, answer in rows])
    return np.array([target for _, target, _ in rows]), p, [group for group, _, _ in rows]


def test_each_group_has_its_own_numbers():
    y, p, groups = answers([("a", 0, 0, 30), ("a", 1, 1, 30), ("b", 0, 0, 20), ("b", 0, 1, 20), ("b", 1, 1, 20), ("", 1, 0, 5)])
    found = judge_groups(y, p, np.zeros(len(y), dtype=int), groups, CLASSES)
    b, a = found["groups"]
    assert (b["group"], b["n"], b["accuracy"], a["accuracy"]) == ("b", 60, pytest.approx(2 / 3), 1.0)
    assert b["class_mean_accuracy"] == pytest.approx(0.75)
    assert b["zero_shot_accuracy"] == pytest.approx(2 / 3)
    assert (b["confidence"], b["ece"]) == (pytest.approx(0.9), pytest.approx(0.9 - 2 / 3))
    assert (a["auroc"], b["auroc"]) == (1.0, pytest.approx(0.75))
    assert b["difference"] == pytest.approx(-1 / 3)
    assert b["difference_interval"][0] < -1 / 3 < b["difference_interval"][1] < 0
    assert (found["worst"], found["best"], found["gap"], found["ungrouped"]) == ("b", "a", pytest.approx(1 / 3), 5)
    assert found["gap_interval"][0] > 0
    assert found["gap_p"] < 0.01


def test_the_gap_of_many_equal_groups_is_chance():
    rng = np.random.default_rng(0)
    y = np.zeros(600, dtype=int)
    p = np.where(rng.random(600)[:, None] < 0.7, [[0.9, 0.1]], [[0.1, 0.9]])
    found = judge_groups(y, p, y, [f"site {i % 20}" for i in range(600)], CLASSES)
    # Thirty images each: the best and the worst of twenty lie far apart by chance, though the interval of the two that were chosen leaves zero out.
    assert found["gap"] > 0.2
    assert found["gap_p"] > 0.05
    assert found["shortcut"] is None


def test_small_groups_are_shown_and_not_called_the_worst():
    y, p, groups = answers([("a", 0, 0, 30), ("b", 0, 0, 20), ("b", 0, 1, 5), ("c", 0, 1, 3)])
    found = judge_groups(y, p, y, groups, CLASSES)
    assert [group["group"] for group in found["groups"]] == ["c", "b", "a"]
    assert (found["worst"], found["best"]) == ("b", "a")
    one = judge_groups(y[:30], p[:30], y[:30], ["a"] * 30, CLASSES)
    assert (one["worst"], one["gap"], one["groups"][0]["difference"], one["groups"][0]["auroc"]) == (None, None, None, None)


def test_a_class_that_is_found_by_what_stands_beside_it():
    # The sick are found where a drain is seen, and the well with one are taken for sick.
    y, p, groups = answers(
        [("drain", 0, 0, 40), ("drain", 1, 0, 20), ("drain", 1, 1, 20), ("no drain", 0, 0, 10), ("no drain", 0, 1, 30), ("no drain", 1, 1, 40)]
    )
    found = judge_groups(y, p, y, groups, CLASSES)["shortcut"]
    assert (found["present"], found["absent"], found["suspected"]) == ("drain", "no drain", ["sick"])
    sick = found["classes"][0]
    assert (sick["class"], sick["found_present"], sick["found_absent"]) == ("sick", 1.0, 0.25)
    assert (sick["taken_present"], sick["taken_absent"]) == (0.5, 0.0)
    assert sick["taken_interval"][0] > 0.2
    # The other class is hidden by it.
    assert found["classes"][1]["found_difference"] == -0.5


@pytest.mark.parametrize("names", [("0", "1"), ("no", "yes"), ("with", "without"), ("absent", "present"), ("No mark", "a mark")])
def test_what_counts_as_present(names):
    y, p, groups = answers([(names[0], 0, 0, 15), (names[1], 0, 0, 15)])
    assert judge_groups(y, p, y, groups, CLASSES)["shortcut"]["absent"] in ("0", "no", "without", "absent", "No mark")


def test_a_groups_file(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("path,age,site\na.png,old,=north\n./b.png,,south\n\ngone.png,old,south\n")
    found, others = read_groups(path, ["a.png", "b.png", "c.png"], tmp_path)
    assert (found, others) == ({"age": {"a.png": "old"}, "site": {"a.png": "=north", "b.png": "south"}}, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n", "one column for each way"),
        ("file,age\na.png,1\n", "must name the column path"),
        ("path,age,age\na.png,1,2\n", "each once"),
        ("path,age\na.png,1,2\n", "line 2: expected 2 cells, got 3"),
        ("path,age\na.png,1\na.png,2\n", "in another group of 'age'"),
        ("path,age\nother.png,1\n", "says nothing of the labelled photographs"),
        ('path,age\n"a.png,1', "save it as comma-separated values"),
        ("path,id\n" + "".join(f"{i}.png,{i}\n" for i in range(51)), "column 'id' has more than 50 values"),
    ],
)
def test_errors_of_a_groups_file_name_it(tmp_path, text, message):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_groups(path, ["a.png", *(f"{i}.png" for i in range(51))], tmp_path)
    assert "groups.csv" in str(caught.value)
