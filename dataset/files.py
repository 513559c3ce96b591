"""Write files completely or not at all, read the user's text and YAML files strictly, and recognise changed files."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4

import yaml

from dataset.messages import DataError

VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)  # environment variable
NOT_YAML = (yaml.YAMLError, ValueError, OverflowError)  # the last two: an escape sequence of no character
MOST_VALUES, DEEPEST = 10_000, 20  # limits of a YAML file: values, and levels of nesting


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], *, sync: bool = False, previous: Path | None = None
) -> None:
    """Write a file so that ``path`` is always either the old file or the complete new one.

    This also holds when several processes on several machines write the same file.

    Args:
        write: writes the content to the stream that it gets.
        sync: wait until the disk has stored the file, so that a power cut cannot lose it.
        previous: new path of the old file. Between the two renames it is the only file.

    Raises:
        OSError: the file cannot be written; the error names it, and the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe: it cannot be replaced by a rename
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
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` of a UTF-8 text. File names that are not UTF-8 keep their bytes."""
    write_whole(path, lambda stream: stream.write(text.encode(errors="surrogateescape")))


def check_writable(folder: str | Path) -> None:
    """Check that files can be written in ``folder``, which is made if missing. Raises OSError if they cannot."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file, without a byte order mark and with "\\n" as the end of every line.

    Raises:
        DataError: the file has another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise DataError(f"{path}, line {line}, is not UTF-8 ({byte}; UTF-16 or Latin-1?): save it as UTF-8") from error


class Bounded(yaml.composer.Composer):
    """Mixin for a YAML loader. It refuses files that aliases make endless or huge: every use of an alias counts."""

    def get_single_node(self) -> yaml.Node | None:
        try:
            top = super().get_single_node()
        except RecursionError:
            raise yaml.composer.ComposerError(problem="nested too deeply") from None
        values, nodes = 0, [(top, 0)] if top else []
        while nodes:
            node, depth = nodes.pop()
            values += 1
            if depth > DEEPEST:
                raise yaml.composer.ComposerError(problem="nested too deeply, or contains itself by an alias")
            if values > MOST_VALUES:
                raise yaml.composer.ComposerError(problem=f"over {MOST_VALUES} values, by aliases of aliases")
            if isinstance(node, yaml.SequenceNode):
                nodes += [(below, depth + 1) for below in node.value]
            elif isinstance(node, yaml.MappingNode):
                nodes += [(below, depth + 1) for pair in node.value for below in pair]
        return top


class YamlLoader(Bounded, yaml.SafeLoader):
    """Loader of all configuration files, see ``Bounded``."""


def yaml_problem(error: Exception) -> str:
    """Why a text is not YAML, and in which line: the end of a message that begins with the name of the file."""
    mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    hint = "; indent with spaces" if "'\\t'" in reason else ""
    return f"is not YAML{f', line {mark.line + 1}' if mark else ''}: {reason}{hint}"


def expand_path(text: str) -> str:
    """``text`` with a leading ``~`` replaced by the home folder, and ``$NAME`` and ``${NAME}`` by the variable's value.

    Raises:
        DataError: a variable is not set, and no file has ``text`` as its name.
    """
    unset = [match.group() for match in VARIABLE.finditer(text) if not os.environ.get(match[1] or match[2])]
    if unset and os.path.lexists(text):
        return text
    if unset:
        raise DataError(f"the variable {unset[0]} in {text!r} is not set: set it, or write the path without it")
    return os.path.expanduser(os.path.expandvars(text))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_version(path: Path) -> tuple[int, int] | None:
    """Time of the last change in ns and size in bytes; None for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
