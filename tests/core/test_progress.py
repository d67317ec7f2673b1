from __future__ import annotations

import io
import time

import pytest

from finelens.core import console as module
from finelens.core.console import progress


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
    monkeypatch.setattr(module, "LOG_INTERVAL", 0)
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
def test_a_log_gets_a_line_every_half_minute(step):
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
    assert min(b - a for a, b in zip([0.0, *times], times, strict=False)) >= 30
    assert len(times) == int(200 * step // (-(-30 // step) * step))
    written = stream.getvalue().splitlines()
    assert len(written) == len(times) + 1
    if step == 1.0:
        assert written[0] == "adapt: 30/200 images, 15 %, about 3 min left"
        assert written[-1] == "adapt: 200 images in 3 min"


def test_work_that_fails_does_not_claim_to_have_ended(monkeypatch):
    monkeypatch.setattr(module, "LOG_INTERVAL", 0)
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
