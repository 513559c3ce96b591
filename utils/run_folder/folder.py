"""The run folder: created, locked and cleaned at the start. Earlier results are moved aside, never deleted.

Only one run at a time uses the folder: a lock file names its process. This works on network file systems too.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from utils.run_folder.checkpoint import CONFIG, CONVERSION, RESULTS, CheckpointError
from utils.run_folder.log import BOARD, RECORDS
from utils.run_folder.manifest import MANIFEST

LOCK = "run.lock"
# The results of an earlier run. log.txt is continued; priors have the digest of their data in their names.
MOVED = (*RESULTS, RECORDS, BOARD, MANIFEST, CONFIG, CONVERSION, "lists", "report.html")
ASIDE = "earlier"


@contextmanager
def open_run_folder(path: Path) -> Iterator[None]:
    """Create the run folder if missing, lock it, remove temporary files of a killed run; unlock it at the end.

    A run that ends before it has written its configuration, a conversion before its result, removes the folders that it
    created.

    Raises:
        CheckpointError: the folder is not writable, or another run uses it.
    """
    made: list[Path] = []  # folders that did not exist, outermost first
    lock, owner = path / LOCK, _owner()
    try:
        try:
            for parent in reversed((path, *path.parents)):
                with suppress(FileExistsError):
                    parent.mkdir()
                    made.append(parent)
            _acquire(lock, owner)
            for found in (*path.glob("*.tmp"), *path.glob("priors/*.tmp")):  # see ``dataset.files.write_whole``
                found.unlink(missing_ok=True)
        except OSError as error:
            problem = f"cannot write into the run folder {path}: {error.strerror}"
            raise CheckpointError(f"{problem}. Make it writable or choose another snapshot_dir") from error
        yield
    finally:
        with suppress(OSError):  # what cannot be read stays
            if lock.read_text() == owner:  # otherwise the folder is another run's
                begun = any((path / name).is_file() for name in (CONFIG, CONVERSION, *RESULTS))
                if path in made and not begun:
                    shutil.rmtree(path, ignore_errors=True)
                lock.unlink(missing_ok=True)
        for parent in reversed(made):
            with suppress(OSError):  # not empty
                parent.rmdir()


def _owner() -> str:
    """The text of a lock of this process, never the same twice."""
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"host": _host(), "pid": pid, "started": _start_time(pid), "since": since, "lock": uuid4().hex})


def _acquire(file: Path, text: str) -> None:
    """Write the lock ``file``; a lock of a process on this host that has ended is replaced.

    Raises:
        CheckpointError: another run has the lock; the message names its process and host, or the file to delete.
        OSError: the folder is not writable.
    """
    while True:
        try:
            stream = file.open("x")
        except FileExistsError:
            _remove_stale(file)
            continue
        try:
            with stream:
                stream.write(text)
        except OSError:  # a full disk
            file.unlink()
            raise
        return


def _remove_stale(file: Path) -> None:
    """Remove the lock if its process has ended. Raises CheckpointError if it runs, or if this is unknown."""
    with suppress(FileNotFoundError):  # unlocked in between
        text = file.read_text()
        _check_stale(file, text)
        aside = file.with_name(f"{LOCK}.{os.getpid()}")
        file.rename(aside)
        if aside.read_text() == text:
            aside.unlink()
        else:  # another run was faster, and this is its lock
            aside.rename(file)


def _check_stale(file: Path, text: str) -> None:
    refused = f"the run folder {file.parent} belongs to another run"
    try:
        owner = json.loads(text)
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        here, running = owner["host"] == _host(), _start_time(owner["pid"]) in ("", owner["started"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{refused}, but {file} does not name it: delete that file if no run is active") from None
    if not here:
        raise CheckpointError(
            f"{refused} ({who}): wait for it, or choose another exp_name; if that process has ended, delete {file}"
        )
    if running:
        raise CheckpointError(f"{refused} ({who}): wait for it, stop it, or choose another exp_name")


def _host() -> str:
    """Name of this machine and, on Linux, of its process namespace: containers may share a machine's name."""
    with suppress(OSError):  # not Linux
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Start time of a process on this machine in ticks since boot; "" if unknown, None if there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # of another user
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in "ZX" else fields[18]


def set_aside(path: Path) -> Path | None:
    """Move the results of an earlier run into a sub-folder, so that they are not mistaken for the new run's.

    Returns:
        the sub-folder, or None without results.
    """
    if not any((path / name).is_file() for name in RESULTS):
        return None
    number = 1
    while (path / f"{ASIDE}-{number}").exists():
        number += 1
    target = path / f"{ASIDE}-{number}"
    target.mkdir()
    for name in MOVED:
        if (path / name).exists():
            (path / name).rename(target / name)
    return target
