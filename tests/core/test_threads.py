"""Work of parts in threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from finelens.core.threads import side_by_side, threads_of_its_own


@pytest.fixture
def three_cores():
    with threads_of_its_own(3, torch.get_num_threads()):
        yield


def test_parts_come_back_in_order_and_share_the_cores(three_cores):
    together = threading.Barrier(3, timeout=20)

    def work(part: int) -> tuple[int, int, bool]:
        together.wait()
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert side_by_side(work, [5, 3, 4]) == [(5, 1, False), (3, 1, False), (4, 1, False)]
    assert torch.get_num_threads() == 3


def test_a_part_of_a_part_runs_in_its_own_thread(three_cores):
    """Threads that waited for each other's parts would never end."""
    together = threading.Barrier(3, timeout=20)

    def work(part: int) -> list[int]:
        together.wait()
        return side_by_side(lambda _: threading.get_ident(), range(4))

    inner = side_by_side(work, range(3))
    assert [len(set(threads)) for threads in inner] == [1, 1, 1]
    assert len({threads[0] for threads in inner}) == 3


def test_one_core_starts_no_thread():
    with threads_of_its_own(1, torch.get_num_threads()):
        assert set(side_by_side(lambda _: threading.get_ident(), range(3))) == {threading.get_ident()}


def test_autocast_is_off_in_every_part(three_cores):
    def autocast(_: int) -> bool:
        return torch.is_autocast_enabled("cpu")

    with torch.autocast("cpu", torch.bfloat16):
        assert side_by_side(autocast, range(2)) == [False, False]
        assert side_by_side(autocast, range(1)) == [False]
        assert autocast(0)


def test_an_error_reaches_the_caller_when_no_part_runs_any_more(three_cores):
    together, ended = threading.Barrier(2, timeout=20), []

    def work(part: int) -> None:
        together.wait()
        if part == 0:
            raise ValueError("part 0")
        time.sleep(0.2)
        ended.append(part)

    with pytest.raises(ValueError, match="part 0"):
        side_by_side(work, range(2))
    assert ended == [1]
    assert side_by_side(lambda part: part + 1, range(3)) == [1, 2, 3]


def test_threads_are_no_more_than_cores(three_cores):
    used = set()
    for parts in (2, 3, 9, 4):
        used |= set(side_by_side(lambda _: time.sleep(0.01) or threading.get_ident(), range(parts)))
    assert 1 < len(used) <= 3
