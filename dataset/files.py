"""Files that are written whole or not at all; text files of people, read strictly; what tells a changed file."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4

from dataset.messages import DataError


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
        OSError: the file, which the error names, cannot be written; the old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe, beside which there is nothing to rename
        with path.open("wb") as stream:
            write(stream)
        return
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
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` of a UTF-8 text; what of a file's name is no UTF-8 is written as the name has it."""
    write_whole(path, lambda stream: stream.write(text.encode(errors="surrogateescape")))


def check_writable(folder: str | Path) -> None:
    """Try whether files can be made in ``folder``, which is made if absent. Raises OSError where they cannot."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file, without a byte order mark; every line ends with "\\n", whatever the file has.

    Raises:
        DataError: another encoding, which would garble names.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise DataError(f"{path}, line {line}, is not UTF-8 ({byte}; UTF-16 or Latin-1?): save it as UTF-8") from error


def file_version(path: Path) -> tuple[int, int] | None:
    """Time of the last change in ns and size in bytes; None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
