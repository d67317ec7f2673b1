from __future__ import annotations

from finelens.health import balance, collapse_warning
from finelens.predictions import PredictionRow

CLASSES = ("a", "b", "c", "d")


def rows(labels: str, zero_shot: str) -> list[PredictionRow]:
    return [PredictionRow(f"{i}.jpg", label=x, zero_shot_class=y) for i, (x, y) in enumerate(zip(labels, zero_shot, strict=True))]


def test_balance_counts_changes_and_unused_classes_and_leaves_unreadable_files_out():
    found = [*rows("aabc", "abbb"), PredictionRow("x.jpg", status="corrupt")]
    assert balance(found, CLASSES) == "2 of 4 images changed class against zero-shot; 1 of 4 classes are never predicted (zero-shot: 2)"


def test_one_class_taking_over_is_a_warning():
    warning = collapse_warning(rows("aaaaabcd", "abbccddd"), CLASSES)
    assert warning is not None
    assert "5 of 8 images went to class 'a' (zero-shot: 1)" in warning


def test_a_class_that_was_large_before_is_no_collapse():
    assert collapse_warning(rows("aaaaabcd", "aaabbccd"), CLASSES) is None
    assert collapse_warning(rows("abcdabcd", "abcdabcd"), CLASSES) is None
    assert collapse_warning(rows("aaaa", "bbbb"), ("a", "b")) is None
    assert collapse_warning([], CLASSES) is None
