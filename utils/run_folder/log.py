"""The logs of a run, written and read: ``log.txt`` (and the console), ``log.jsonl`` and TensorBoard.

Only the first process writes. No log may stop or block a training: a log that cannot be written is disabled with a
warning; the run continues.
"""

import errno
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.record_writer import register_writer_factory
from tqdm import tqdm

from dataset.files import write_text
from dataset.messages import Report

TEXT, BOARD, CONSOLE = "log.txt", "tensorboard", "standard output"
RECORDS = "log.jsonl"
SHARE = "share"  # PHASE/share/LAYER: a histogram over the classes
VALIDATION = "val"  # val/SCORE
PREDICTION = f"target/{SHARE}/prediction"  # of the network on some target training images, in eval mode
LABELS = (f"target/{SHARE}/pixel/", f"target/{SHARE}/square_")  # beginnings of names
RECENT = 10  # records at the end of a run, which are averaged
PICTURE_WIDTH = 1600  # pixels at most; a panel of Cityscapes at full size has several MB
DRAWN_BARS = 30  # TensorBoard always draws this number of bars; given as many, each bar is one class
NOTHING = 1e-12  # height of an empty bar; with 0, TensorBoard would widen the bars beside it
SCHEME = "run"  # tensorboardX opens addresses with this beginning through ``Board``

Histogram = dict[str, float]  # by class, in the order of the train ids
Values = Mapping[str, float | Histogram]  # scalars and histograms of a step, by name
Failed = Callable[[str, BaseException | None], None]  # gets the name of a log and its error


class LogFile(logging.FileHandler):
    """A log file. Errors are passed to ``failed``."""

    def __init__(self, path: Path, failed: Failed) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._failed = failed

    def handleError(self, record: logging.LogRecord) -> None:
        self._failed(Path(self.baseFilename).name, sys.exc_info()[1])


class Console(logging.Handler):
    """Standard output, above a progress bar. Errors are passed to ``failed``."""

    def __init__(self, failed: Failed) -> None:
        super().__init__()
        self._failed = failed

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError):
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        # Otherwise the interpreter would fail at exit, when it flushes the buffer.
        with suppress(OSError):  # a stream without a file
            out, nowhere = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stderr, sys.stdout):
                if os.path.sameopenfile(stream.fileno(), out):
                    os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        self._failed(CONSOLE, error)


class Board:
    """TensorBoard's event files in ``folder``, which is created if missing.

    tensorboardX writes from its own thread. If an error ended that thread, its queue would fill and the next call would
    wait for ever. Therefore the thread writes to this object: it stores an error for ``check`` and drops later writes.

    Args:
        purge_step: TensorBoard ignores the records of earlier files from this step on.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._error: OSError | None = None
        register_writer_factory(SCHEME, self)
        self.writer = SummaryWriter(f"{SCHEME}:{folder}", purge_step=purge_step)

    def directory_check(self, address: str) -> None:
        Path(address.removeprefix(f"{SCHEME}:")).mkdir(parents=True, exist_ok=True)

    def open(self, address: str) -> "Board":
        self._file = open(address.removeprefix(f"{SCHEME}:"), "wb", buffering=0)  # noqa: SIM115
        return self

    def write(self, content: bytes) -> None:
        if self._error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self._error = error

    def flush(self) -> None:
        """Writes are not buffered."""

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def check(self) -> None:
        """Raise the OSError of an earlier write."""
        if self._error is not None:
            raise self._error

    def bars(self, step: int, name: str, heights: Sequence[float]) -> None:
        """A histogram. The bar from c to c + 1 has the height ``heights[c]``; all later bars are empty."""
        bars = np.full(DRAWN_BARS * math.ceil(len(heights) / DRAWN_BARS), NOTHING)
        bars[: len(heights)] = np.maximum(heights, NOTHING)
        left = np.arange(len(bars))
        moments = {"num": bars.sum(), "sum": (left * bars).sum(), "sum_squares": (left**2 * bars).sum()}
        limits = {"min": 0, "max": len(bars), "bucket_limits": left + 1}
        self.writer.add_histogram_raw(name, bucket_counts=bars, global_step=step, **limits, **moments)


class RunLog:
    """Logs of one run folder: ``log.txt``, ``log.jsonl`` and ``tensorboard/``; ``log.txt`` on the console too.

    Args:
        folder: the run folder, made if missing.
        enabled: False makes every call a no-op (all processes but the first).

    Attributes:
        reader_lost: True if standard output failed because its reader has gone, not because a disk is full.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled, self.reader_lost = folder, enabled, False
        self._handlers: dict[str, logging.Handler] = {}  # of the logs that can still be written, by name
        self._board: Board | None = None
        self._draws = enabled  # whether TensorBoard can still be written
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            lines = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
            self._handlers |= {CONSOLE: Console(self._disable), TEXT: LogFile(folder / TEXT, self._disable)}
            for handler in self._handlers.values():
                handler.setFormatter(lines)
            self._handlers[RECORDS] = LogFile(folder / RECORDS, self._disable)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self._write(f"{type(error).__name__}: {error}", TEXT)  # the program prints it on the console
        self._close_board()
        for name in list(self._handlers):
            self._close(name)

    def _close(self, name: str) -> None:
        handler = self._handlers.pop(name, None)
        with suppress(OSError):  # closing flushes what a failure left in the buffer
            if handler is not None:
                handler.close()

    def _disable(self, name: str, error: BaseException | None) -> None:
        """Close the log that has failed and report it once."""
        if name == CONSOLE:  # a closed terminal gives EIO
            gone = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO)
            self.reader_lost = self.reader_lost or gone
        if name == BOARD:
            self._draws = False
        else:
            self._close(name)
        where = name if name == CONSOLE else self.folder / name
        self.text(f"WARNING: cannot write to {where}: {error}. This log is disabled; the run continues")

    def _write(self, message: str, *names: str) -> None:
        # No logger: it would be global to the process and keep the handlers of every run.
        record = logging.makeLogRecord({"msg": message})
        for name in names:
            if name in self._handlers:
                self._handlers[name].handle(record)

    def restart(self, step: int, validated: bool = True) -> None:
        """Remove the records after ``step``: those of an earlier run (0), or of steps that a resumed run repeats.

        Args:
            validated: False removes the scores at ``step`` too: that validation is repeated.
        """
        if not self.enabled:
            return
        path = self.folder / RECORDS
        kept = kept_records(path, step, validated, self.text) if step and path.is_file() else ""
        write_text(path, kept)
        self._close(RECORDS)
        self._handlers[RECORDS] = LogFile(path, self._disable)
        self._close_board()
        if step == 0:  # otherwise TensorBoard would still show the earlier run
            shutil.rmtree(self.folder / BOARD, ignore_errors=True)
        self._draw(lambda board: None, purge_step=step + 1)

    def text(self, message: str) -> None:
        """A line (or a table) for people."""
        self._write(message, CONSOLE, TEXT)

    def record(self, step: int, values: Values) -> None:
        """Write the values of a step to ``log.jsonl`` and TensorBoard. Values that are not finite are null.

        Args:
            values: scalars and histograms by name. A histogram has the share of each class; the second part of its
                name is ``SHARE``.
        """
        shares = {name: value for name, value in values.items() if isinstance(value, dict)}
        scalars = {name: value for name, value in values.items() if not isinstance(value, dict)}
        flat = {f"{layer}/{name}": share for layer, classes in shares.items() for name, share in classes.items()}
        self._write(plain_json({"step": step, **scalars, **flat}), RECORDS)

        def draw(board: Board) -> None:
            for name, value in scalars.items():
                board.writer.add_scalar(name, value, step)
            for histogram, classes in shares.items():
                board.bars(step, histogram, list(classes.values()))

        self._draw(draw)

    def document(self, step: int, name: str, text: str) -> None:
        """A preformatted text in TensorBoard."""
        self._draw(lambda board: board.writer.add_text(name, f"```\n{text}\n```", step))

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture in TensorBoard, shrunk to ``PICTURE_WIDTH`` or less."""

        def draw(board: Board) -> None:
            small = picture.reduce(math.ceil(picture.width / PICTURE_WIDTH))
            board.writer.add_image(name, np.array(small), step, dataformats="HWC")

        self._draw(draw)

    def _draw(self, draw: Callable[[Board], None], purge_step: int | None = None) -> None:
        """Call ``draw`` with the board, which is opened at the first call."""
        if not self._draws:
            return
        try:
            self._board = self._board or Board(self.folder / BOARD, purge_step)
            self._board.check()
            draw(self._board)
        except OSError as error:
            self._disable(BOARD, error)

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.writer.close()
            self._draw(lambda board: None)  # reports an error of the last writes
            self._board = None


def plain_json(value: Any) -> str:
    """``value`` as JSON. JSON has no NaN and no infinity; they become null."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda name: None))


def read_records(path: Path, report: Report) -> Iterator[dict[str, Any]]:
    """The record of each intact line; a crash may damage lines, and ``report`` gets their numbers."""
    damaged = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            yield record
        else:
            damaged.append(number)
    if damaged:
        lines = ", ".join(map(str, damaged))
        report(f"{path}: skipped {len(damaged)} damaged line(s), number {lines}")


def read_scalars(path: Path, report: Report = print) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, finite scalars by name) of each record in a run's ``log.jsonl``, without the class shares."""
    for record in read_records(path, report):
        step = record.pop("step")
        numbers = {name: value for name, value in record.items() if value is not None and math.isfinite(value)}
        yield step, {name: value for name, value in numbers.items() if f"/{SHARE}/" not in name}


def kept_records(path: Path, step: int, validated: bool, report: Report) -> str:
    """The records that a run resumed after ``step`` keeps, without the scores of a validation that it repeats.

    Args:
        validated: whether the validation after ``step`` is done.
    """
    kept = []
    for record in read_records(path, report):
        scores = all(name == "step" or name.startswith(f"{VALIDATION}/") for name in record)
        if record["step"] < step or (record["step"] == step and (validated or not scores)):
            kept.append(f"{plain_json(record)}\n")
    return "".join(kept)


def read_shares(path: Path, histogram: str, report: Report = print) -> list[tuple[int, Histogram]]:
    """(step, share of each class) of each record in a run's ``log.jsonl`` that has this ``histogram``."""
    start, found = f"{histogram}/", []
    for record in read_records(path, report):
        shares = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        if shares:
            found.append((record["step"], shares))
    return found


def last_labels(path: Path) -> Histogram | None:
    """Class shares of the pseudo-labels in the finest layer at the end of a run; None without pseudo-labels.

    A batch has few images, so this is the mean of the last ``RECENT`` records.
    """
    records = read_records(path, lambda text: None)  # read_shares reports damaged lines
    names = (name for record in records for name in record if name.startswith(LABELS))
    layers = {"/".join(name.split("/")[:3]) for name in names}  # the name of a class may have a "/" too
    if not layers:
        return None
    layer = min(layers, key=lambda name: int(name.rpartition("_")[2]) if "_" in name else 1)
    last = [shares for _, shares in read_shares(path, layer)[-RECENT:]]
    return {name: sum(shares[name] for shares in last) / len(last) for name in last[0]}
