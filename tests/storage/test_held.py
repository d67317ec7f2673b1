from __future__ import annotations

import errno

import numpy as np
import pytest

from finelens.errors import UserError
from finelens.storage.held import HeldRows


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back(tmp_path, kind, on_disk):
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(kind)
    held = HeldRows(tmp_path if on_disk else None)
    for start in (0, 20, 49):
        held.add(rows[start : {0: 20, 20: 49, 49: 50}[start]])
    assert len(held) == 50
    for places in ([0], [49, 0, 7, 8, 9, 20, 19], list(range(50)), []):
        found = held.at(np.array(places, dtype=np.int64))
        assert found.dtype == kind
        np.testing.assert_array_equal(found, rows[np.array(places, dtype=np.int64)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_may_be_read_between_two_additions(tmp_path, on_disk):
    rows, held = np.arange(10.0).reshape(5, 2), HeldRows(tmp_path if on_disk else None)
    assert len(held.at(np.zeros(0, dtype=np.int64))) == 0
    held.add(rows[:3])
    np.testing.assert_array_equal(held.at(np.array([0])), rows[:1])
    held.add(rows[3:])
    np.testing.assert_array_equal(held.at(np.arange(5)), rows)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        def seek(self, *place):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finelens.storage.held.tempfile.TemporaryFile", lambda **kwargs: Full())
    with pytest.raises(UserError, match="No space left on device"):
        HeldRows(tmp_path).add(np.zeros((2, 2)))
