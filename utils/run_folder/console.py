"""Standard output and error of a run: a reader that goes away, or a full disk behind them, raises no exception."""

import errno
import io
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO


class _Stream:
    """``stream`` whose failures are told once; what is written after one is dropped. All else is the stream's own."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._switch_off(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._switch_off(error)

    def _switch_off(self, error: OSError) -> None:
        """Let the file descriptor lead nowhere: the interpreter would otherwise fail at its end over what is left."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except io.UnsupportedOperation:  # no file behind it
            self._stream = open(os.devnull, "w")  # noqa: SIM115  open to the end of the process
        os.close(nowhere)
        self._failed(error)


class Console:
    """While entered, ``sys.stdout`` and ``sys.stderr`` do not raise.

    Args:
        report: told once of each that failed.

    Attributes:
        lost: whether one of them has failed because its reader is gone, not because a disk is full.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report, self.lost = report, False

    def __enter__(self) -> "Console":
        self._streams = sys.stdout, sys.stderr
        sys.stdout = _Stream(sys.stdout, lambda error: self._note("standard output", error))
        sys.stderr = _Stream(sys.stderr, lambda error: self._note("standard error", error))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout, sys.stderr = self._streams

    def _note(self, name: str, error: OSError) -> None:
        # EIO is what a terminal that was closed gives.
        self.lost = self.lost or isinstance(error, BrokenPipeError) or error.errno == errno.EIO
        self.report(f"nothing more goes to {name}: {error.strerror}")
