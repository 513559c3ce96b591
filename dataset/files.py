"""Files that are written as a whole or not at all, and what tells a changed file from the one before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], *, sync: bool = False, previous: Path | None = None
) -> None:
    """Write a file so that ``path`` is at every moment either the old file or the whole new one, also when several
    processes, on several machines, write the same one.

    Args:
        write: gets the stream to write to.
        sync: wait until the disk has it, so that a power cut does not take it.
        previous: where the old file is kept; between the two renames it is the only one.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        if previous is not None and path.is_file():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_version(path: Path) -> tuple[int, int] | None:
    """Time of the last change in ns and size in bytes; None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
