"""One line per result: what it must say, and a file that several processes append to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from finelens.core.options import to_plain
from finelens.errors import UserError
from finelens.storage.files import json_text, write_error
from finelens.storage.lock import HeldError, Lock

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
Status = Literal["ok", "skipped", "failed", "broke_a_rule"]
VERSIONS = ("finelens", "python", "torch", "numpy", "threads")
# What new rows name as well; rows of before it was asked for are still read.
NEW = ("code",)
SOURCE = ("checksum", "train", "test", "classes", "layout", "split")


@dataclass(frozen=True)
class Key:
    """What a result is a result of; no two lines of a file have the same.

    Attributes:
        data: Name of the data set.
        protocol: Name of the protocol.
        method: Name of the method.
        backbone: As the user gave it.
        seed: Of the split and of the method.
        profile: ``small``, ``medium`` or ``full``.
        options: What ``--set`` changed, sorted; empty for the defaults.
    """

    data: str
    protocol: str
    method: str
    backbone: str
    seed: int
    profile: str
    options: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Short name for files."""
        return hashlib.sha256(json_text(to_plain(self)).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Result:
    """One line. It cannot be made without what is needed to make it again.

    Attributes:
        key: What it is a result of.
        status: ``ok``; ``skipped`` where the protocol does not apply; ``failed`` where the method raised; ``broke_a_rule`` where it was caught.
        config: The run's configuration, every option resolved.
        versions: Of what computed it.
        source: The data: checksum, counts, layout, origin of the split.
        command: What makes this line.
        reason: Why there is no number.
        split: Images and classes of this run.
        measures: Shares in [0, 1], intervals, p-values.
        cost: Counted work.
        timing: Seconds and memory: all that differs between two equal runs.
        health: What a run says about itself without labels: ``verdict``, ``signals`` and, where ``training.guard`` kept the method from training,
            ``untrained``. Empty in rows of before, without a number, of streams and of methods that look at many views.
        correct: Whether each test image is right, packed (see :func:`pack`), in the order of content hashes. Empty where a photograph may have
            several classes, so that there is no accuracy.
    """

    key: Key
    status: Status
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    source: Mapping[str, Any]
    command: str
    reason: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    correct: str = ""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"unknown status {self.status!r}")
        for name, needed in (("versions", VERSIONS), ("source", SOURCE)):
            _require(getattr(self, name), name, needed)
        if not self.command.startswith("finelens bench"):
            raise ValueError("a result without its command cannot be written")
        if self.status != "ok":
            if not self.reason or self.measures:
                raise ValueError(f"a result that is {self.status} has a reason and no measures")
            return
        if not self.config or self.config.get("method") != self.key.method or self.config.get("seed") != self.key.seed:
            raise ValueError("a result without its configuration cannot be written")
        if not self.measures or not self.split.get("checksum") or ("accuracy" in self.measures) != bool(self.correct):
            raise ValueError("a result without measures, split checksum and hits is none")

    @property
    def default(self) -> bool:
        """Whether no option was changed by hand."""
        return not self.key.options

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        rest = {f.name: to_plain(getattr(self, f.name)) for f in fields(self) if f.name != "key"}
        return {"schema": SCHEMA, **to_plain(self.key), "default": self.default, **rest}


def _require(values: Mapping[str, Any], name: str, needed: Sequence[str]) -> None:
    missing = [key for key in needed if values.get(key) in (None, "")]
    if missing:
        raise ValueError(f"a result without {name}.{missing[0]} cannot be written")


def from_json(document: Mapping[str, Any]) -> Result:
    """Read what :meth:`Result.to_json` wrote.

    Raises:
        ValueError: Something is missing.
    """
    values = dict(document)
    if values.pop("schema", None) != SCHEMA:
        found = document.get("schema")
        raise ValueError("it names no schema" if found is None else f"schema {found!r} is not {SCHEMA}")
    values.pop("default", None)
    try:
        key = {f.name: values.pop(f.name) for f in fields(Key)}
        return Result(key=Key(**{**key, "options": tuple(key["options"])}), **values)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def run_seconds(row: Result) -> float:
    """Wall time of a run by itself, encoding included, as if nothing were shared."""
    return float(row.timing["seconds"] + row.timing.get("seconds_per_shared_forward", 0.0) * row.cost["no_grad_forwards"])


class ResultsFile:
    """JSON lines that several processes read and append to. A line is there wholly or not at all.

    Args:
        path: The file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.claims = self.path.with_name(self.path.name + ".claims")

    def read(self) -> list[Result]:
        """All results.

        Raises:
            UserError: A line is no result; the message names it.
        """
        return read_results([self.path]) if self.path.exists() else []

    def keys(self) -> set[Key]:
        """What is done."""
        return {result.key for result in self.read()}

    def append(self, result: Result) -> None:
        """Add a line and make it survive a power cut.

        Raises:
            UserError: The file cannot be written.
            ValueError: The row does not say which code computed it.
        """
        _require(result.versions, "versions", NEW)
        line = (json_text(result.to_json()) + "\n").encode()
        try:
            with _locked(self.path) as descriptor:
                _drop_torn_line(descriptor)
                os.lseek(descriptor, 0, os.SEEK_END)
                os.write(descriptor, line)
                os.fsync(descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error

    @contextmanager
    def claim(self, key: Key) -> Iterator[bool]:
        """Take one result to compute; False where a living process has it. A claim ends with its process, however that ends.

        Raises:
            UserError: It cannot be written down.
        """
        try:
            self.claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.claims, error) from error
        lock = Lock(self.claims / f"{key.digest}.lock")
        try:
            lock.acquire()
        except HeldError:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def tidy(self) -> None:
        """Remove the folder of claims if nobody holds one."""
        with suppress(OSError):
            self.claims.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _drop_torn_line(descriptor: int) -> None:
    """Cut what a process that was killed while it wrote has left: bytes after the last line end."""
    size = os.fstat(descriptor).st_size
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65536)
        tail = os.pread(descriptor, size - start, start)
    whole = start + tail.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Results of several files, in their order; a line without an end is left out.

    Raises:
        UserError: A file cannot be read, or a line is no result; the message names it.
    """
    results = []
    for path in paths:
        try:
            text = Path(path).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; give a results file of finelens bench") from error
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                results.append(from_json(json.loads(line)))
            except (ValueError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: not a result of finelens bench ({error})") from error
    return results


def only_methods(results: Iterable[Result], methods: Sequence[str]) -> list[Result]:
    """The rows of some methods, in their order.

    Raises:
        UserError: A method has no row.
    """
    rows = list(results)
    there = dict.fromkeys(row.key.method for row in rows)
    missing = [name for name in methods if name not in there]
    if missing:
        raise UserError(f"no result of {', '.join(missing)}; there are {', '.join(there)}")
    return [row for row in rows if row.key.method in methods]


def pack(correct: Any) -> str:
    """Hits as hexadecimal digits, first image in the highest bit."""
    import numpy as np

    return np.packbits(np.asarray(correct, dtype=bool)).tobytes().hex()


def unpack(text: str, count: int) -> Any:
    """What :func:`pack` was given, (count,) bool."""
    import numpy as np

    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(bool)
