"""A column of numbers that come group by group."""

from __future__ import annotations

import numpy as np
import torch

from finelens.core.columns import Column


def test_numbers_of_any_kind_come_back_in_their_order():
    column = Column()
    assert column.numbers.shape == (0,)
    for part in (torch.zeros(0), np.array([1, 2]), torch.tensor([0.5, -3.0]), [7.0], np.arange(6).reshape(2, 3)[:, 1]):
        column.add(part)
    assert len(column) == 7
    np.testing.assert_array_equal(column.numbers, [1, 2, 0.5, -3, 7, 1, 4])
    # What was handed out is nobody else's.
    column.numbers[0] = 9
    column.add([8])
    assert column.numbers[0] == 1
