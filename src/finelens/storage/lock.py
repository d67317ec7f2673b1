"""One process at a time in a run folder: a lock file that names its owner, and recovery when the owner has died."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finelens.errors import UserError
from finelens.storage.files import write_error

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one with the same number by its start time.

    Attributes:
        pid: Process id.
        start: Kernel's start time of the process; empty where the system does not tell.
        host: Machine the process runs on.
    """

    pid: int
    start: str
    host: str

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(os.getpid(), start_time(os.getpid()), socket.gethostname())

    def is_alive(self) -> bool:
        """Whether the process may still run; a process on another machine is taken to be alive, since it cannot be asked."""
        if self.host != socket.gethostname():
            return True
        # An unknown start time proves nothing: the process may belong to a user whose processes are hidden.
        return process_exists(self.pid) and start_time(self.pid) in ("", self.start)


def process_exists(pid: int) -> bool:
    """Whether a process of that number exists on this machine."""
    if os.name != "posix":  # Signal 0 is not harmless on Windows.
        return True
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def start_time(pid: int) -> str:
    """Boot and clock ticks at which a process started; ``ended`` for a zombie, empty where the system does not tell."""
    try:
        # The command name stands in parentheses and may hold spaces: fields are counted after the last one.
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return ""
    return "ended" if state in "ZX" else f"{boot}:{rest[18]}"


class HeldError(UserError):
    """A living process holds the claim."""


class Lock:
    """An exclusive claim on a folder, held by a file in it.

    Args:
        path: The lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner: Owner | None = None

    def acquire(self) -> None:
        """Claim the folder.

        Raises:
            HeldError: A living process holds it.
            UserError: The file cannot be written.
        """
        try:
            with _exclusive(self.path) as descriptor:
                holder = _read_owner(descriptor)
                if holder is not None and holder.is_alive():
                    where = "" if holder.host == socket.gethostname() else f" on {holder.host}"
                    raise HeldError(
                        f"another run is using {self.path.parent} (process {holder.pid}{where}); wait for it or choose another folder, "
                        f"or delete {self.path} if you know that it has ended"
                    )
                owner = Owner.current()
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)
                os.fsync(descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._owner = owner

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Claim the folder for longer than the block; where the block fails the claim is given up.

        Raises:
            UserError: As from :meth:`acquire`.
        """
        self.acquire()
        try:
            yield
        except BaseException:
            self.release()
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds the claim. A forked worker inherits the object but not the claim."""
        return self._owner is not None and self._owner.pid == os.getpid()

    def release(self) -> None:
        """Give up the claim, if this process holds it. The file is removed only if it still names this process."""
        if not self.held:
            return
        with suppress(OSError), _exclusive(self.path) as descriptor:
            if _read_owner(descriptor) == self._owner:
                self.path.unlink()
        self._owner = None


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """The lock file, open, with no other process between reading and writing it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if fcntl is not None:
                # Without advisory locks (some network file systems) the file still names its owner; only a tie within milliseconds is lost.
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _still_named(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _still_named(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name: a release may have removed it while we waited."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_owner(descriptor: int) -> Owner | None:
    """Owner named in a lock file; None for an empty or damaged one, which a process killed while it claimed leaves behind."""
    try:
        fields: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        owner = Owner(**fields)
    except (ValueError, TypeError):
        return None
    return owner if type(owner.pid) is int else None
