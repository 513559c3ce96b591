"""What a run writes down: a text log, one JSON line a record, TensorBoard. Only the first process writes."""

import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from dataset.files import write_whole

RECORDS, BOARD = "log.jsonl", "tensorboard"
SHARE = "share"  # PHASE/share/LAYER: a histogram over the classes
PICTURE_WIDTH = 1600  # pixels at most: panels of Cityscapes at full size would be MBs each, at every validation
DRAWN_BARS = 30  # TensorBoard draws so many, whatever it is given: with as many, each is one class
NOTHING = 1e-12  # height of an empty bar: TensorBoard would widen the first and last full one over those of 0


def read_scalars(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, scalars by name) of each record in a run's ``log.jsonl``, without the class shares."""
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        yield step, {name: value for name, value in record.items() if f"/{SHARE}/" not in name}


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        if error is not None:
            self._logger.error(f"{type(error).__name__}: {error}")
        self._json.close()
        self._board.close()
        for handler in self._logger.handlers:
            handler.close()

    def _open_records(self, **options: int) -> None:
        self._json = (self.folder / RECORDS).open("a")
        self._board = SummaryWriter(str(self.folder / BOARD), **options)

    def restart(self, step: int) -> None:
        """Forget the records after ``step``: those of an earlier run (0), or of steps that a resumed run repeats."""
        if not self.enabled:
            return
        self._json.close()
        self._board.close()
        path = self.folder / RECORDS
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        write_whole(path, lambda stream: stream.write(kept.encode()))
        if step == 0:  # TensorBoard would go on showing what the new run does not write
            shutil.rmtree(self.folder / BOARD)
        self._open_records(purge_step=step + 1)

    def text(self, message: str) -> None:
        """A line (or a table) for people."""
        if self.enabled:
            self._logger.info(message)

    def record(self, step: int, values: dict[str, float], shares: dict[str, dict[str, float]] | None = None) -> None:
        """What a step gave, for programs and TensorBoard.

        Args:
            values: scalars by name.
            shares: by the name of a histogram, which has ``SHARE`` as its second part, the share of each class.
        """
        if not self.enabled:
            return
        shares = shares or {}
        flat = {f"{layer}/{name}": share for layer, classes in shares.items() for name, share in classes.items()}
        self._json.write(json.dumps({"step": step, **values, **flat}) + "\n")
        self._json.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        for histogram, classes in shares.items():
            self._bars(step, histogram, list(classes.values()))

    def _bars(self, step: int, name: str, heights: Sequence[float]) -> None:
        """A histogram in TensorBoard whose bar from c to c + 1 is ``heights[c]``; all that follow are empty."""
        bars = np.full(DRAWN_BARS * math.ceil(len(heights) / DRAWN_BARS), NOTHING)
        bars[: len(heights)] = np.maximum(heights, NOTHING)
        left = np.arange(len(bars))
        moments = {"num": bars.sum(), "sum": (left * bars).sum(), "sum_squares": (left**2 * bars).sum()}
        limits = {"min": 0, "max": len(bars), "bucket_limits": left + 1}
        self._board.add_histogram_raw(name, bucket_counts=bars, global_step=step, **limits, **moments)

    def document(self, step: int, name: str, text: str) -> None:
        """A preformatted text in TensorBoard."""
        if self.enabled:
            self._board.add_text(name, f"```\n{text}\n```", step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture in TensorBoard, shrunk to ``PICTURE_WIDTH`` or less."""
        if self.enabled:
            small = picture.reduce(math.ceil(picture.width / PICTURE_WIDTH))
            self._board.add_image(name, np.array(small), step, dataformats="HWC")
