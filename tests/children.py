"""Processes that a test starts, asks to stop, kills and listens to, forked from one that has imported everything.

To a test such a process is ``python ARGUMENTS``: its own number, signals, environment, output and exit code. What it does not do again is importing
torch and what finelens loads of it, which takes longer than the work that a test gives it. Tests of what is imported start an interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

PRELOADED = "tests.preloaded"


class Said(NamedTuple):
    out: str
    err: str


class Child:
    """A process with the part of ``subprocess.Popen`` that tests use.

    Args:
        arguments: What follows ``python``: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``.
        environment: All of it.
        cwd: Where it runs.
    """

    def __init__(self, arguments: Sequence[object], environment: Mapping[str, str] = os.environ, cwd: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="child-")
        files = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        self._files = [Path(file) for file in files]
        given = (list(map(str, arguments)), dict(environment), str(cwd or Path.cwd()), *files)
        self._process = ForkServerProcess(target=_work, args=given)
        with _server_environment():
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> Said:
        """Wait for its end; what it wrote."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.said()

    def said(self) -> Said:
        """What it wrote so far."""
        return Said(*(file.read_text(encoding="utf-8") if file.exists() else "" for file in self._files))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


class _server_environment:
    """The server is started with the first child: it needs the way to the tests, and as many threads as they have."""

    def __enter__(self) -> None:
        multiprocessing.set_forkserver_preload([PRELOADED])
        self.before = dict(os.environ)
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self.before)


def _work(arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")
