"""What a run writes down: a text log, one JSON line a record, TensorBoard scalars. Only the first process writes."""

import json
import logging
import sys
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter
from tqdm import tqdm

RECORDS = "log.jsonl"


class _TqdmHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """Logs of one run folder: ``log.txt``, ``log.jsonl`` and ``tensorboard/``.

    Args:
        folder: the run folder, which exists.
        enabled: False makes every call a no-op (all processes but the first).
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        self._logger = logging.Logger(str(folder))
        if not enabled:
            return
        for handler in (logging.FileHandler(folder / "log.txt"), _TqdmHandler()):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            self._logger.addHandler(handler)
        self._open_records()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.enabled:
            return
        if error is not None:
            self._logger.error(f"{kind.__name__}: {error}")
        self._json.close()
        self._board.close()
        for handler in self._logger.handlers:
            handler.close()

    def _open_records(self, **options: int) -> None:
        self._json = (self.folder / RECORDS).open("a")
        self._board = SummaryWriter(str(self.folder / "tensorboard"), **options)

    def restart(self, step: int) -> None:
        """Forget the records after ``step``: those of an earlier run (0), or of steps that a resumed run repeats."""
        if not self.enabled:
            return
        self._json.close()
        self._board.close()
        path = self.folder / RECORDS
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
        self._open_records(purge_step=step + 1)

    def text(self, message: str) -> None:
        """A line (or a table) for people."""
        if self.enabled:
            self._logger.info(message)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step, for programs and TensorBoard."""
        if not self.enabled:
            return
        self._json.write(json.dumps({"step": step, **values}) + "\n")
        self._json.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
