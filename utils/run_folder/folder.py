"""The run folder as a place: made, locked and swept at the start; earlier results are moved aside, never deleted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.run_folder.checkpoint import (
    BEST,
    CONVERTED,
    LAST,
    OFFICIAL_DECODER,
    OFFICIAL_ENCODER,
    PREVIOUS,
    CheckpointError,
)
from utils.run_folder.lock import LockError, RunLock
from utils.run_folder.log import BOARD, RECORDS

RESULTS = (BEST, LAST, PREVIOUS, CONVERTED, OFFICIAL_ENCODER, OFFICIAL_DECODER)
# What belongs to an earlier run's results; log.txt goes on, and priors are named by what they were made of.
MOVED = (*RESULTS, RECORDS, BOARD, "config.yaml", "config_adabn.yaml", "lists", "report.html")
ASIDE = "earlier"


class RunFolder:
    """A run folder that this process has the lock of.

    Attributes:
        kept: True as soon as the run has begun: before, a start that fails leaves no folder that it made itself.
    """

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path, self.lock, self.kept = path, lock, False


@contextmanager
def open_run_folder(path: Path) -> Iterator[RunFolder]:
    """Make the run folder if absent, take its lock, remove a killed run's temporary files; undo it at the end.

    Raises:
        CheckpointError: nothing can be written into it, or another run is going on there.
    """
    made: list[Path] = []
    try:
        folder = _open(path, made)
    except BaseException:
        _remove(path, made)
        raise
    try:
        yield folder
    finally:
        folder.lock.release()
        if not folder.kept:
            _remove(path, made)


def _open(path: Path, made: list[Path]) -> RunFolder:
    """``made`` gets the folders that did not exist, outermost first."""
    try:
        for folder in reversed((path, *path.parents)):
            with suppress(FileExistsError):
                folder.mkdir()
                made.append(folder)
        lock = RunLock(path)
        lock.acquire()
        _sweep(path)
    except LockError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        problem = f"cannot write into the run folder {path}: {error.strerror}"
        raise CheckpointError(f"{problem}. Make it writable or choose another snapshot_dir") from error
    return RunFolder(path, lock)


def _remove(path: Path, made: list[Path]) -> None:
    if path in made:
        shutil.rmtree(path, ignore_errors=True)
    for folder in reversed(made):
        with suppress(OSError):  # another run's folder is in it by now
            folder.rmdir()


def _sweep(path: Path) -> None:
    """Remove the half-written files of a killed run, see ``dataset.files.write_whole``."""
    for found in (*path.glob("*.tmp"), *path.glob("priors/*.tmp")):
        found.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Move the results of an earlier run, which would be mistaken for the new run's, into a sub-folder.

    Returns:
        The sub-folder, None where there were no results.
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
