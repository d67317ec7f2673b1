from __future__ import annotations

import io
import itertools
import json
import os
import signal
import time

import pytest

from finelens.core import console as module
from finelens.core import stopped
from finelens.core.console import progress
from finelens.core.phases import Phases


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_short_work_is_quiet():
    for stream in (io.StringIO(), Terminal()):
        with progress(3, "adapt", stream=stream) as bar:
            for _ in range(3):
                bar.update()
        assert stream.getvalue().strip() == ""


def test_disabled_is_silent(monkeypatch):
    monkeypatch.setattr(module, "DELAY", 0)
    monkeypatch.setattr(module, "LOG_FIRST", 0)
    stream = Terminal()
    with progress(3, "adapt", enabled=False, stream=stream) as bar:
        bar.update(3)
    assert stream.getvalue() == ""


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch):
    monkeypatch.setattr(module, "DELAY", 0.05)
    stream = Terminal()
    with progress(3, "adapt", stream=stream) as bar:
        for _ in range(3):
            time.sleep(0.12)
            bar.update()
    assert "adapt:" in stream.getvalue()
    assert "image/s" in stream.getvalue() or "s/ image" in stream.getvalue()


@pytest.mark.parametrize("step", [1.0, 7.0])
def test_a_log_gets_a_line_every_minute(step):
    now = [0.0]
    stream = io.StringIO()
    lines = module._Lines(200, "adapt", "image", stream, clock=lambda: now[0])
    times = []
    for _ in range(200):
        now[0] += step
        before = stream.tell()
        lines.update()
        if stream.tell() > before:
            times.append(now[0])
    lines.finish()
    # One soon, for somebody who wonders whether anything happens.
    assert times[0] == -(-10 // step) * step
    assert min(b - a for a, b in itertools.pairwise(times)) >= 60
    assert len(times) == 1 + int((200 * step - times[0]) // (-(-60 // step) * step))
    written = stream.getvalue().splitlines()
    assert len(written) == len(times) + 1
    if step == 1.0:
        assert written[0] == "adapt: 10/200 images, 5 %, about 3 min left"
        assert written[-1] == "adapt: 200 images in 3 min"


def test_work_that_fails_does_not_claim_to_have_ended(monkeypatch):
    monkeypatch.setattr(module, "LOG_FIRST", 0)
    stream = io.StringIO()

    def failing():
        with progress(2, "adapt", stream=stream) as bar:
            bar.update()
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert len(stream.getvalue().splitlines()) == 1


def test_durations():
    assert [module.duration(s, rough=True) for s in (0, 89, 100, 3000, 9000)] == ["0 s", "89 s", "2 min", "50 min", "2.5 h"]


@pytest.mark.parametrize("slower", [1, 20])
def test_the_time_left_is_right_a_minute_after_the_pace_has_changed(slower):
    """What comes from a cache says nothing about what has to be encoded."""
    now, fast, slow = [0.0], 1000, 1000
    pace = module._Pace(fast + slow, clock=lambda: now[0])
    for _ in range(fast):
        now[0] += 0.1
        pace.update(1)
    for done in range(slow):
        now[0] += 0.1 * slower
        time_of_update = pace.update(1)
        left = (slow - done - 1) * 0.1 * slower
        # A minute, or a quarter of the time where that is longer.
        if done * 0.1 * slower > max(65, now[0] / 4 + 5) and left:
            assert pace.left(time_of_update) == pytest.approx(left, rel=0.2)
    assert pace.left(now[0]) == 0
    assert len(pace._marks) < 1000


def test_events_for_another_program():
    now, stream = [0.0], io.StringIO()
    console = module.EventConsole(stream, clock=lambda: now[0])
    console.say("caf\u00e9")
    console.warn("doubtful")
    with console.progress(4, "predict", "row") as bar:
        for seconds in (0.5, 0.4, 1.1, 0.1):
            now[0] += seconds
            bar.update()
    assert stream.getvalue().isascii()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(event.pop("time").endswith("+00:00") for event in events)
    assert events[:2] == [{"event": "note", "text": "caf\u00e9"}, {"event": "warning", "text": "doubtful"}]
    own = [(event["done"], event["total"], event["seconds"], event["left"]) for event in events[2:]]
    assert own == [(0, 4, 0.0, None), (3, 4, 2.0, 0.7), (4, 4, 2.1, 0.0)]
    assert {(event["what"], event["unit"]) for event in events[2:]} == {("predict", "row")}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def slow_groups(clock, bar, groups, size, read, look, cached=0):
    """Groups as ``predict`` and ``features`` go through them: all images of a group are read, then looked at, 64 at a time."""
    phases = Phases(bar, clock)
    for group in range(groups):
        with phases.group(size):
            with phases.phase(size) as step:
                for _ in range(size):
                    clock.now += read
                    step.update()
            with phases.console.progress(size, "encode") as step:
                for done in range(0, size, 64):
                    clock.now += (0.001 if group < cached else look) * min(64, size - done)
                    step.update(min(64, size - done))


@pytest.mark.parametrize(("read", "look"), [(0.01, 1.0), (0.3, 0.02), (0.2, 0.2)], ids=["a large tower", "large files", "both"])
def test_groups_that_take_minutes_are_followed_inside(read, look):
    clock, stream, groups, size = Clock(), io.StringIO(), 6, 512
    console = module.EventConsole(stream, clock)
    with console.progress(groups * size, "predict") as bar:
        slow_groups(clock, bar, groups, size, read, look)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    whole = clock.now
    assert events[-1]["done"] == events[-1]["total"] == groups * size
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    # Known once the first images have been through all of it, and 64 are looked at together.
    since = max(60.0, size * read + 64 * look + 1)
    later = [event for event in events if since <= event["seconds"] < 0.98 * whole]
    assert len(later) > 20
    assert max(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(events)) <= max(60, 64 * look + 1)
    wrong = [event for event in later if event["left"] is None or abs(event["left"] / (whole - event["seconds"]) - 1) > 0.2]
    assert not wrong


def test_a_log_of_slow_groups_has_a_line_a_minute():
    clock, stream = Clock(), io.StringIO()
    lines = module._Lines(1024, "predict", "image", stream, clock)
    slow_groups(clock, lines, 2, 512, 0.2, 1.0)
    lines.finish()
    written = stream.getvalue().splitlines()
    assert written[0] == "predict: 0/1024 images, 0 %"
    # Nothing is counted while the first images are read, and the minute goes on.
    assert written[1] == "predict: 0/1024 images, 0 %"
    assert len(written) - 1 >= 0.5 * clock.now / 60
    assert written[-1] == "predict: 1024 images in 20 min"


def test_the_left_time_of_a_terminal_is_that_of_the_log(monkeypatch):
    """tqdm's own would follow the last few images."""
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    bar = module._bar(1000, "adapt", "image", Terminal())
    for _ in range(100):
        clock.now += 1.0
        bar.update(1)
    clock.now += 0.001
    bar.update(10)
    assert bar.format_dict["rate"] == pytest.approx(1.1, rel=0.1)
    assert bar.n == 110
    bar.close()


goes_on = pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="no such signal here")


@goes_on
def test_a_stop_of_the_process_is_no_time_of_work():
    """SIGCONT comes when it goes on; ten minutes in which it stood still would make four seconds of work hours."""
    now = [0.0]
    with stopped.heeding():
        pace = module._Pace(100, clock=lambda: now[0])
        for _ in range(50):
            now[0] += 0.1
            pace.update(1)
        now[0] += 600.0
        os.kill(os.getpid(), signal.SIGCONT)
        assert pace.left(now[0]) is None
        left = []
        for _ in range(20):
            now[0] += 0.1
            left.append(pace.left(pace.update(1)))
    assert left[-1] == pytest.approx(3.0, rel=0.1)
    assert max(filter(None, left)) < 6


@goes_on
def test_groups_forget_how_long_a_phase_took_that_was_stopped():
    clock = Clock()
    done = []

    class Bar:
        def update(self, n=1):
            done.append(n)

    phases = Phases(Bar(), clock)
    with stopped.heeding():
        for group in range(3):
            counted = sum(done)
            with phases.group(10):
                with phases.phase(10) as step:
                    for _ in range(10):
                        clock.now += 1.0
                        step.update()
                    if group == 1:
                        clock.now += 600.0
                        os.kill(os.getpid(), signal.SIGCONT)
                # Reading is half of the work, whatever stood still in the group before.
                assert group == 0 or sum(done) - counted == pytest.approx(5.0)
                with phases.phase(10) as step:
                    clock.now += 10.0
                    step.update(10)


@goes_on
def test_whoever_heard_of_a_continuation_before_still_does():
    heard = []
    previous = signal.signal(signal.SIGCONT, lambda number, frame: heard.append(number))
    try:
        with progress(1, "adapt", stream=io.StringIO()):
            os.kill(os.getpid(), signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGCONT)
    finally:
        signal.signal(signal.SIGCONT, previous)
    assert heard == [signal.SIGCONT] * 2
