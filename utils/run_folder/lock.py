"""One run at a time in a run folder: an exclusive file names the process that has it, also on network file systems."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

LOCK = "run.lock"


class LockError(RuntimeError):
    """The run folder belongs to another run; the message names its process and host, and the file to delete."""


class RunLock:
    """The lock of ``folder``, which exists. ``acquire`` and ``release`` are for one process of a run."""

    def __init__(self, folder: Path) -> None:
        self.path, self._ours = folder / LOCK, ""

    def acquire(self) -> None:
        """Take the lock, also that of a process of this host that has ended.

        Raises:
            LockError: another run has it.
            OSError: the folder cannot be written.
        """
        pid = os.getpid()
        owner = {"host": _host(), "pid": pid, "started": _start_time(pid), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._ours = json.dumps(owner)
        while True:
            try:
                stream = self.path.open("x")
            except FileExistsError:
                self._remove_stale()
                continue
            try:
                with stream:
                    stream.write(self._ours)
            except OSError:  # a full disk
                self.path.unlink()
                raise
            return

    def _remove_stale(self) -> None:
        """Remove the file if its process has ended. Raises LockError if that process runs, or cannot be asked."""
        with suppress(FileNotFoundError):  # released in between
            text = self.path.read_text()
            self._check_stale(text)
            aside = self.path.with_name(f"{LOCK}.{os.getpid()}")
            self.path.rename(aside)
            if aside.read_text() == text:
                aside.unlink()
            else:  # another run was quicker, and this is its lock
                aside.rename(self.path)

    def _check_stale(self, text: str) -> None:
        refused = f"the run folder {self.path.parent} belongs to another run"
        try:
            owner = json.loads(text)
            who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
            ended = _start_time(owner["pid"]) not in ("", owner["started"])
        except (ValueError, KeyError, TypeError):
            raise LockError(
                f"{refused}, which {self.path} does not name: delete that file if no run is going on"
            ) from None
        if owner["host"] != _host():
            raise LockError(
                f"{refused} ({who}): wait for it, or choose another exp_name; if that process has ended, delete "
                f"{self.path}"
            )
        if not ended:
            raise LockError(f"{refused} ({who}): wait for it, stop it, or choose another exp_name")

    def release(self) -> None:
        """Remove the file, if it is ours."""
        with suppress(OSError):
            if self.path.read_text() == self._ours:
                self.path.unlink()


def _host() -> str:
    """This machine; of a container that shares its name, the container."""
    with suppress(OSError):  # not Linux
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a process of this machine has started, in ticks since the boot; "" where the system does not say so, None if
    there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in "ZX" else fields[18]
