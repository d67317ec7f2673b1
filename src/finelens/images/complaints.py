"""``--strict``: files that decode "fine" although the image library complained, with what it said, as notes in their rows."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from finelens.core.console import Console
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile
from finelens.protocol import ImageRecord

PREFIX = "decoded with warnings: "
PATIENCE_SECONDS = 120.0


class SecondOpinion:
    """The helper process, started again after a file that killed it. Use as a context manager.

    Args:
        limits: Of the command whose files are checked.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> SecondOpinion:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def complaints(self, path: Path) -> list[str]:
        """What the libraries say about a file; that they did not survive it, if so."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(os.fspath(path)) + "\n")
            process.stdin.flush()
            answer = self._answer(process)
        except (OSError, UnicodeEncodeError):
            answer = ""
        if not answer.endswith("\n"):
            self._stop()
            return ["the checking reader crashed or did not answer"]
        found: list[str] = json.loads(answer)
        return found

    def _answer(self, process: subprocess.Popen[str]) -> str:
        """One line; empty when the process ended or took too long. It answers in one write, so a line that has begun comes whole."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(PATIENCE_SECONDS) else ""

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "finelens.images.second_opinion", str(self._limits.max_pixels)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def note_complaints(files: Sequence[ImageFile], records: Sequence[ImageRecord], limits: DecodeLimits, console: Console) -> list[ImageRecord]:
    """The records, those of complained-of files with a note. Status and pixels stay: a person decides what to do about it.

    Args:
        files: The files, in the order of the records.
        records: What became of them.
        limits: Under which that became of them.
        console: Progress, and a line that sums up.
    """
    noted: list[ImageRecord] = []
    with SecondOpinion(limits) as opinion, console.progress(len(files), "check images") as bar:
        for file, record in zip(files, records, strict=True):
            found = opinion.complaints(file.path) if record.status == "ok" else []
            noted.append(replace(record, reason="; ".join(filter(None, [record.reason, PREFIX + ", ".join(found)]))) if found else record)
            bar.update(1)
    doubtful = [record.name for record in noted if PREFIX in record.reason]
    console.say(f"strict: {len(doubtful)} files decode with warnings" + (f", first {doubtful[0]}" if doubtful else ""))
    return noted
