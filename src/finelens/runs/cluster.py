"""Numbered parts of a piece of work on the machines of a Ray cluster: each is written by one of some workers, and by another when that one is lost.

Actors of Ray's core and not Ray Data, whose blocks need not begin where ours do. Ray itself retries nothing: attempts are counted here, so that they
have an end, and so that a worker that was lost does not keep its part waiting for a machine like its own.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from finelens.core.console import Console, Mute, Progress
from finelens.core.schemas import VERSION
from finelens.errors import UserError

# How often a part, or the start of a worker in a row, may be lost before it is given up.
ATTEMPTS = 4
# Seconds without any worker before the work is given up, between two looks at the cluster, and for a first answer of its address.
PATIENCE, TICK, REACH = 600.0, 2.0, 10.0
# Seconds that processes of a cluster of this machine alone have to end, and a number of <linux/prctl.h>.
GRACE, PR_SET_CHILD_SUBREAPER = 3.0, 36
# Kinds of warnings that are passed on.
MOST_WARNINGS = 10

_GOES_ON = "what is whole stays, and the same command goes on there"


class Work(Protocol):
    """What a worker holds from its first part to its last: model and list of photographs."""

    key: Any
    """Everything that decides the bytes; the same for all workers."""

    def write(self, number: int, folder: Path, console: Console) -> Any:
        """Write part ``number`` into a folder of this attempt; returns what :meth:`Target.accept` wants to know."""
        ...


class Target(Protocol):
    """What the parts are for; in the process that asked."""

    def open(self, key: Any) -> Sequence[int]:
        """Take up what is there of the same key; returns the parts that are left."""
        ...

    def place(self) -> Path:
        """A new folder for one attempt. A worker that was given up may still write, and does so where nobody looks."""
        ...

    def accept(self, number: int, folder: Path, value: Any) -> int:
        """Take a part that is whole out of the folder of its attempt; returns the number of its inputs."""
        ...


@dataclass(frozen=True)
class Said:
    """Answer of a worker. An error is a value, as Ray puts a raised one behind a trace."""

    host: str
    value: Any = None
    error: str = ""
    warnings: tuple[str, ...] = ()


class Collect(Mute):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "heard", [])

    def warn(self, line: str) -> None:
        """Keep the line."""
        vars(self)["heard"].append(line)


def versions() -> dict[str, str]:
    """What must be the same everywhere, and is the same or not before anything is loaded."""
    return {"finelens": VERSION, "torch": str(torch.__version__)}


class Worker:
    """One process of the cluster with one model.

    Args:
        make: Function of ``asked`` and a console that loads everything; must be importable.
        asked: The question.
        home: Folder that must be seen.
        threads: Of the process that asked; the order of sums depends on them.
        expected: :func:`versions` of the process that asked.
    """

    def __init__(self, make: Callable[[Any, Console], Work], asked: Any, home: Path, threads: int, expected: dict[str, str]) -> None:
        self._make, self._asked, self._home, self._threads, self._expected = make, asked, home, threads, expected
        self._work: Work | None = None

    def begin(self) -> Said:
        """Load; answers with the key."""

        def load(console: Console) -> Any:
            for name, version in versions().items():
                if version != self._expected[name]:
                    raise UserError(f"{name} {version} is installed there and {self._expected[name]} here; install the same versions everywhere")
            if not self._home.is_dir():
                raise UserError(f"it does not see {self._home}: all inputs and outputs must lie on a disk that all machines see under the same path")
            torch.set_num_threads(self._threads)
            self._work = self._make(self._asked, console)
            return self._work.key

        return _said(load)

    def part(self, number: int, folder: Path) -> Said:
        """Write a part."""
        assert self._work is not None
        work = self._work
        return _said(lambda console: work.write(number, folder, console))


def _said(answer: Callable[[Console], Any]) -> Said:
    console, host = Collect(), socket.gethostname()
    try:
        return Said(host, answer(console), warnings=tuple(vars(console)["heard"]))
    except UserError as error:
        return Said(host, error=error.message)


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected.

    Args:
        address: Of the cluster; by default ``RAY_ADDRESS``, else a cluster of this machine alone.

    Raises:
        UserError: Ray is missing, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'finelens[ray]'") from error
    place = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield ray
        return
    if place is not None:
        _check_reachable(place)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with nullcontext() if place else _nothing_left(str(Path(ray.__file__).parent)):
        try:
            _join(ray, address, place)
            yield ray
        finally:
            # Also of what had begun to start.
            ray.shutdown()


@contextmanager
def _nothing_left(home: str) -> Iterator[None]:
    """End what Ray began inside and did not end by itself: helpers of a node that was stopped while it started look for it for a minute.

    Args:
        home: Folder of the package.
    """
    # Ray brings it along.
    import psutil

    def of_ray(process: Any) -> bool:
        try:
            return any(word.startswith("ray::") or home in word for word in process.cmdline())
        except psutil.Error:
            return False

    def children() -> list[Any]:
        return list(filter(of_ray, psutil.Process().children(recursive=True)))

    others = children()
    _adopt(True)
    try:
        yield
    finally:
        psutil.wait_procs([child for child in children() if child not in others], timeout=GRACE)
        for child in children():
            if child not in others:
                with suppress(psutil.Error):
                    child.kill()
        _adopt(False)


def _adopt(on: bool) -> None:
    """Whether children of a child that is gone become this process's; Linux alone can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def _join(ray: Any, address: str | None, place: str | None) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None if place else False)
    except Exception as error:  # A node that does not start in time is of no other class.
        remedy = "check --ray-address, and that ray status answers" if place else "try again when the machine has less to do, or give --ray-address"
        raise UserError(f"no Ray cluster at {place or 'this machine'} ({_short(error)}); {remedy}") from error


def _check_reachable(place: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = place.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {place}: {error}; check --ray-address, and that ray status answers") from error


@dataclass
class Crew:
    """Workers of one piece of work.

    Attributes:
        ray: The module, connected.
        hire: Function that asks for a further actor of :class:`Worker`.
        room: Function that says how many the machines that are there can hold.
        target: What is written.
        most: Number of parts, those that are whole already too.
        console: Warnings of the workers, each once.
        tries: Attempts that were lost, by part.
        warned: Warnings with their numbers.
    """

    ray: Any
    hire: Callable[[], Any]
    room: Callable[[], int]
    target: Target
    most: int
    console: Console

    def __post_init__(self) -> None:
        self.tries: Counter[int] = Counter()
        self.warned: Counter[str] = Counter()
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, int, Path]] = {}
        self._idle: list[Any] = []
        self._left: deque[int] | None = None
        self._key: Any = None
        self._failed_starts = 0

    def run(self, bar: Progress) -> int:
        """Write every part that is left.

        Returns:
            How many attempts were lost.

        Raises:
            UserError: A worker says so, a part or the start of a worker was lost too often, or no worker was there for too long.
        """
        if not self.room():
            raise UserError(
                "no machine of the Ray cluster has what one worker needs: a core for each thread (fewer with OMP_NUM_THREADS=1), and a GPU with "
                "--device cuda; ray status says what there is"
            )
        since = time.monotonic()
        try:
            while self._left is None or self._left or self._busy:
                self._fill()
                if self._idle or self._busy:
                    since = time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    raise UserError(f"no worker for {PATIENCE:.0f} s: the cluster is busy or has lost its machines (ray status); {_GOES_ON}")
                asked = [*self._busy, *self._starting]
                if not asked:
                    time.sleep(TICK)
                for answer in self.ray.wait(asked, num_returns=1, timeout=TICK)[0] if asked else ():
                    self._hear(answer, bar)
        except self.ray.exceptions.RayError as error:
            raise UserError(f"the Ray cluster is gone: {_short(error)}; {_GOES_ON}") from error
        finally:
            for actor in [*self._starting.values(), *(actor for actor, _, _ in self._busy.values()), *self._idle]:
                self._dismiss(actor)
            self._say_warnings()
        return self.tries.total()

    def _fill(self) -> None:
        """Workers for what is left, and parts for the workers."""
        left = max(self.most, 1) if self._left is None else len(self._left) + len(self._busy)
        for _ in range(min(self.room(), left) - len(self._starting) - len(self._busy) - len(self._idle)):
            actor = self.hire()
            self._starting[actor.begin.remote()] = actor
        while self._left and self._idle:
            actor, number, folder = self._idle.pop(), self._left.popleft(), self.target.place()
            self._busy[actor.part.remote(number, folder)] = (actor, number, folder)

    def _hear(self, answer: Any, bar: Progress) -> None:
        if answer in self._starting:
            actor = self._starting.pop(answer)
            said = self._get(answer, "the start of a worker")
            if isinstance(said, Exception):
                self._dismiss(actor)
                self._failed_starts += 1
                if self._failed_starts >= ATTEMPTS:
                    raise UserError(f"{ATTEMPTS} workers in a row did not start: {_short(said)}; finelens[ray] must be installed on each machine")
                return
            self._failed_starts = 0
            self._begin(said)
            self._idle.append(actor)
            return
        actor, number, folder = self._busy.pop(answer)
        name = f"part {number} of {self.most}"
        said = self._get(answer, name)
        if isinstance(said, Exception):
            self._dismiss(actor)
            self.tries[number] += 1
            if self.tries[number] >= ATTEMPTS:
                raise UserError(
                    f"{name} was lost {ATTEMPTS} times with its worker, the last: {_short(said)}; look into the logs of Ray on that machine "
                    f"(too little memory for a worker a core?); {_GOES_ON}"
                )
            assert self._left is not None
            self._left.appendleft(number)
            return
        bar.update(self.target.accept(number, folder, said.value))
        self._idle.append(actor)

    def _begin(self, said: Said) -> None:
        if self._left is None:
            self._key, self._left = said.value, deque(self.target.open(said.value))
        elif said.value != self._key:
            raise UserError(
                f"{said.host} would write other bytes than the worker before it: the photographs, the run or what its processor can do differ there; "
                "use machines of one kind, and one disk"
            )

    def _get(self, answer: Any, name: str) -> Any:
        """Answer of a worker, or how it was lost."""
        errors = self.ray.exceptions
        try:
            said = self.ray.get(answer)
        except errors.RayTaskError as error:
            raise UserError(f"{name} failed: {_short(error.cause if getattr(error, 'cause', None) else error)}; {_GOES_ON}") from error
        except errors.RayError as error:
            return error
        if said.error:
            raise UserError(f"a worker on {said.host} says: {said.error}")
        self.warned.update(said.warnings)
        return said

    def _dismiss(self, actor: Any) -> None:
        with suppress(Exception):
            self.ray.kill(actor)

    def _say_warnings(self) -> None:
        for line, count in self.warned.most_common(MOST_WARNINGS):
            self.console.warn(line if count == 1 else f"{line} (said {count} times)")
        if len(self.warned) > MOST_WARNINGS:
            self.console.warn(f"{len(self.warned) - MOST_WARNINGS} further warnings of workers are left out")


def crew_of(
    ray: Any, make: Callable[[Any, Console], Work], asked: Any, home: Path, target: Target, *, parts: int, device: str, console: Console
) -> Crew:
    """Workers with the threads of this process, a core for each, and one GPU with ``cuda``.

    Raises:
        UserError: Another device.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--engine ray takes --device cpu or cuda, and gives each worker a GPU of its own; {device} names one of this machine")
    threads, gpus = torch.get_num_threads(), int(device == "cuda")

    def room() -> int:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(min(own.get("CPU", 0) // threads, own.get("GPU", 0) // gpus if gpus else parts)) for own in alive)

    kind: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Worker)
    return Crew(ray, lambda: kind.remote(make, asked, home, threads, versions()), room, target, parts, console)


def _short(error: BaseException) -> str:
    """What of an error a person reads: type, and the line that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line]
    return f"{type(error).__name__}: {(causes or lines or [''])[-1 if causes else 0][:300]}"
