"""The map of a run with many photographs or classes."""

from __future__ import annotations

from finelens.reporting.sections.photo_map import PICTURES, _spread
from finelens.storage.predictions import PredictionRow


def rows(classes: int, each: int) -> list[PredictionRow]:
    return [PredictionRow(f"{c}-{k}.jpg", f"class {c}", k / each) for k in range(each) for c in range(classes)]


def test_of_each_class_the_surest_and_the_least_sure_come_first():
    found = _spread(rows(100, 20))
    assert len(found) == len(set(found)) == PICTURES
    # In turn: the surest of every class, then the least sure of every class, then between.
    assert [found[c] // 100 for c in range(100)] == [19] * 100
    assert [found[100 + c] // 100 for c in range(100)] == [0] * 100
    assert {i % 100 for i in found[200:300]} == set(range(100))


def test_many_classes_have_a_picture_each():
    assert {i % 400 for i in _spread(rows(400, 3))} == set(range(400))
    assert len(_spread(rows(3000, 2))) == PICTURES


def test_what_room_is_left_is_filled():
    assert sorted(_spread(rows(3, 4))) == list(range(12))
    assert len(_spread([*rows(1, 3), *rows(30, 40)])) == PICTURES
    assert _spread([]) == []


class Watched(list):  # type: ignore[type-arg]
    def __init__(self, *given):
        super().__init__(*given)
        self.looks = 0

    def __getitem__(self, place):
        self.looks += 1
        return super().__getitem__(place)


def test_the_work_does_not_grow_with_the_square_of_the_photographs():
    many = Watched(rows(7, 1000))
    _spread(many)
    assert many.looks <= 2 * len(many)
