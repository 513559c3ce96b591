"""One run at a time in a run folder: a lock file that names the process, safe on network file systems.

A process of the same machine is alive if its id and its start time are those in the file; one of another machine, or
of another container, if the file was touched lately. Nothing relies on ``flock``, which not every network file system
has.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

LOCK = "run.lock"
BEAT = 20.0  # seconds between two signs of life
STALE = 180.0  # seconds without one after which a process of another machine counts as dead
ATTEMPTS = 10  # to take the lock while others let it go or take it over


class LockError(RuntimeError):
    """The run folder belongs to another run; the message names its process and machine."""


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    Attributes:
        machine: boot and process-id namespace, within which ``pid`` means something.
        started: start time of the process in the kernel's ticks, so that a reused ``pid`` is told apart.
        since: when it took the lock, for people.
        token: of this one lock.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str


def this_process() -> Owner:
    """This process as the owner of a new lock."""
    since, pid = time.strftime("%Y-%m-%d %H:%M:%S %Z"), os.getpid()
    return Owner(socket.gethostname(), _machine(), pid, _start_time(pid), since, uuid4().hex)


def _machine() -> str:
    with suppress(OSError):  # not on macOS, where a host has one boot and no namespaces
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_time(pid: int) -> str:
    """Start time of a process in ticks, "" where the system does not say or show it, or the process has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _is_running(pid: int, started: str) -> bool:
    """Whether a process of this machine is the one that began at ``started``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, which may be hidden below
        return _start_time(pid) in (started, "")
    return _start_time(pid) == started


def _read(path: Path) -> Owner | None:
    """The owner that a lock file names; None for a file that is gone, or cut off."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class RunLock:
    """The lock of ``folder``, which exists. ``acquire`` and ``release`` are for one process of a run."""

    def __init__(self, folder: Path) -> None:
        self.path, self.owner = folder / LOCK, this_process()
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock, over a dead process's too.

        Raises:
            LockError: another run holds it.
            OSError: the folder cannot be written.
        """
        candidate = self.path.with_name(f"{LOCK}.{self.owner.token}.tmp")
        try:
            candidate.write_text(json.dumps(asdict(self.owner)))
            for _ in range(ATTEMPTS):
                if self._create(candidate):
                    threading.Thread(target=self._beat, daemon=True).start()
                    return
                self._take_over(candidate.stat().st_mtime)
        finally:
            candidate.unlink(missing_ok=True)
        raise LockError(f"cannot take {self.path}: other runs take it again and again")

    def _create(self, candidate: Path) -> bool:
        """Make the lock file with its content, if there is none: a hard link is atomic on network file systems too."""
        try:
            os.link(candidate, self.path)
            return True
        except FileExistsError:
            return candidate.stat().st_nlink == 2  # a repeated message over the network reports the first one's link
        except OSError:  # a file system without hard links
            try:
                with self.path.open("x") as stream:
                    stream.write(candidate.read_text())
            except FileExistsError:
                return False
            return True

    def _take_over(self, now: float) -> None:
        """Remove a dead process's lock; ``now`` is the file system's own time in seconds, as clocks may differ.

        Raises:
            LockError: its process is alive.
        """
        try:
            silent = now - self.path.stat().st_mtime
        except OSError:
            return  # released in between
        owner = _read(self.path)
        if owner is None and not self.path.exists():
            return
        if self._is_alive(owner, silent):
            self._refuse(owner, silent)
        aside = self.path.with_name(f"{LOCK}.{uuid4().hex}.tmp")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != owner:  # somebody else took over in between: give it back
            with suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)

    def _is_alive(self, owner: Owner | None, silent: float) -> bool:
        if owner is not None and (owner.host, owner.machine) == (self.owner.host, self.owner.machine):
            return _is_running(owner.pid, owner.started)
        return silent < STALE

    def _refuse(self, owner: Owner | None, silent: float) -> None:
        who = f"process {owner.pid} on {owner.host}, since {owner.since}" if owner else "a process that is starting"
        raise LockError(
            f"the run folder {self.path.parent} belongs to another run ({who}, last sign of "
            f"life {max(silent, 0):.0f} s ago): wait for it, stop it, or choose another exp_name"
        )

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            if self.is_ours():
                with suppress(OSError):
                    os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether the lock file still names this process: it may have been taken over after a long suspension."""
        return _read(self.path) == self.owner

    def release(self) -> None:
        """Remove the lock file, if it is ours."""
        self._released.set()
        if self.is_ours():
            self.path.unlink(missing_ok=True)
