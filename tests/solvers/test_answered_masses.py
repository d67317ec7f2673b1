"""Class masses that answers say: closed cases, and how firmly even masses are believed."""

from __future__ import annotations

import pytest
import torch

from finelens.solvers.answered_masses import FIRMNESSES, answered_masses


def masses(labels, speaks_for=None, look=None, classes=4):
    labels = torch.tensor(labels)
    weight = torch.ones(len(labels)) if speaks_for is None else torch.tensor(speaks_for)
    return answered_masses(labels, weight, torch.arange(len(labels)) if look is None else torch.tensor(look), classes)


def firmness(found, counts):
    """The one that leads from counts of answers that speak for as many images each to these masses."""
    n, counts = sum(counts), torch.tensor(counts).double()
    return next(a for a in FIRMNESSES if torch.allclose(found, (counts + a) / (n + a * len(counts))))


def test_even_answers_are_taken_for_even_masses_and_absent_classes_for_absent():
    assert masses([0, 1, 2, 3] * 5).tolist() == pytest.approx([0.25] * 4)
    assert firmness(masses([0, 0, 1, 2, 3] * 4), [8, 4, 4, 4]) == 2
    one_class = masses([0] * 20)
    assert firmness(one_class, [20, 0, 0, 0]) == min(FIRMNESSES)
    assert one_class[0] > 0.95
    # One answer says little.
    assert firmness(masses([2]), [0, 0, 1, 0]) == 1


def test_answers_count_by_what_they_speak_for():
    found = masses([0, 1, 1, 1], [30.0, 10.0, 10.0, 10.0], classes=2)
    assert found.tolist() == pytest.approx([0.5, 0.5])
    assert found.sum() == pytest.approx(1)


def test_a_group_is_one_look():
    # Twelve photographs of one look say as much as one.
    group = masses([0] * 12 + [1, 2], [1 / 12] * 12 + [1.0, 1.0], [0] * 12 + [1, 2])
    assert torch.allclose(group, masses([0, 1, 2]))


def test_every_class_keeps_a_mass():
    assert (masses([0] * 400, classes=100) > 0).all()
