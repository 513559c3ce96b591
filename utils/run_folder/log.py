"""What a run writes down: a text log, one JSON line a record, TensorBoard. Only the first process writes.

No log may stop or stall a training: one that cannot be written is switched off with a word, and the run goes on.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from PIL import Image
from tqdm import tqdm

from dataset.files import write_whole
from utils.run_folder.board import Board
from utils.run_folder.console import Console
from utils.run_folder.records import RECORDS, kept_records, plain_json

TEXT, BOARD = "log.txt", "tensorboard"


class RunLog:
    """Logs of one run folder: ``log.txt``, ``log.jsonl`` and ``tensorboard/``; ``log.txt`` on the console too.

    Args:
        folder: the run folder, which exists.
        enabled: False makes every call a no-op (all processes but the first).
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        self.console = Console(self.text)
        self._off: set[str] = set()  # logs that cannot be written any more
        if enabled:
            self._text = (folder / TEXT).open("a")
            self._open_records()

    def __enter__(self) -> "RunLog":
        self.console.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            if error is not None and not isinstance(error, SystemExit):
                self._write(f"{type(error).__name__}: {error}")  # the program itself says it on the console
            for name, log in ((RECORDS, self._json), (BOARD, self._board), (TEXT, self._text)):
                with self._tolerate(name):
                    log.close()
        self.console.__exit__(kind, error, trace)

    @contextmanager
    def _tolerate(self, name: str) -> Iterator[None]:
        """Switch the log ``name`` off where it cannot be written, and say so once."""
        try:
            yield
        except OSError as error:
            if name not in self._off:
                self._off.add(name)
                self.text(f"WARNING: cannot write {self.folder / name}: {error}. It ends here, the run goes on without")

    def _open_records(self, purge_step: int | None = None) -> None:
        self._json = (self.folder / RECORDS).open("a")
        self._board = Board(self.folder / BOARD, purge_step)

    def restart(self, step: int, validated: bool = True) -> None:
        """Forget the records after ``step``: those of an earlier run (0), or of steps that a resumed run repeats.

        Args:
            validated: False forgets the scores at ``step`` too: that validation is repeated.
        """
        if not self.enabled:
            return
        path = self.folder / RECORDS
        kept = kept_records(path, step, validated, self.text) if step and path.is_file() else ""
        write_whole(path, lambda stream: stream.write(kept.encode()))
        self._json.close()
        self._board.close()
        if step == 0:  # TensorBoard would go on showing what the new run does not write
            shutil.rmtree(self.folder / BOARD, ignore_errors=True)
        self._open_records(purge_step=step + 1)

    def text(self, message: str) -> None:
        """A line (or a table) for people."""
        if self.enabled:
            # above a progress bar instead of through it
            tqdm.write(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stdout)
            sys.stdout.flush()
            self._write(message)

    def _write(self, message: str) -> None:
        """A line of ``log.txt`` alone."""
        if TEXT not in self._off:
            with self._tolerate(TEXT):
                self._text.write(f"{time.strftime('%H:%M:%S')} {message}\n")
                self._text.flush()

    def record(self, step: int, values: dict[str, float], shares: dict[str, dict[str, float]] | None = None) -> None:
        """What a step gave, for programs and TensorBoard. Values that are not finite are null.

        Args:
            values: scalars by name.
            shares: by the name of a histogram, which has ``SHARE`` as its second part, the share of each class.
        """
        if not self.enabled:
            return
        shares = shares or {}
        flat = {f"{layer}/{name}": share for layer, classes in shares.items() for name, share in classes.items()}
        if RECORDS not in self._off:
            with self._tolerate(RECORDS):
                self._json.write(plain_json({"step": step, **values, **flat}) + "\n")
                self._json.flush()
        if BOARD not in self._off:
            with self._on_board() as board:
                board.scalars(step, values)
                for histogram, classes in shares.items():
                    board.bars(step, histogram, list(classes.values()))

    @contextmanager
    def _on_board(self) -> Iterator[Board]:
        with self._tolerate(BOARD):
            yield self._board
            self._board.flush()

    def document(self, step: int, name: str, text: str) -> None:
        """A preformatted text in TensorBoard."""
        if self.enabled and BOARD not in self._off:
            with self._on_board() as board:
                board.document(step, name, text)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture in TensorBoard, shrunk."""
        if self.enabled and BOARD not in self._off:
            with self._on_board() as board:
                board.picture(step, name, picture)
