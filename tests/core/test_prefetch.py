"""Work beside a block: its result, its exceptions, its settings, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
import torch

from finelens.core.threads import prefetch

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("finelens-prefetch")]


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_the_work_runs_while_the_block_does():
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert go_on.wait(10)
        return threading.current_thread().name

    with prefetch(work, CPU) as result:
        assert begun.wait(10)
        go_on.set()
        assert result().startswith("finelens-prefetch")
    assert not ours()


def test_what_it_raises_is_raised_where_it_is_asked_for():
    def fails() -> None:
        raise MemoryError("too large")

    with prefetch(fails, CPU) as result, pytest.raises(MemoryError, match="too large"):
        result()
    assert not ours()


def test_no_thread_is_left_when_the_block_fails():
    done = threading.Event()
    with pytest.raises(ValueError, match="block"), prefetch(done.set, CPU):
        raise ValueError("block")
    assert done.is_set()
    assert not ours()


@pytest.mark.parametrize("graded", [True, False])
def test_gradients_are_recorded_where_the_caller_records_them(graded):
    x = torch.ones(2, requires_grad=True)
    with torch.set_grad_enabled(graded), prefetch(lambda: 2 * x, CPU) as result:
        assert result().requires_grad == graded
    assert torch.is_grad_enabled()


def test_it_takes_one_core_and_changes_no_other_thread(two_threads):
    with prefetch(torch.get_num_threads, CPU) as result:
        assert result() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    assert threads_of_a_new_thread() == 2
