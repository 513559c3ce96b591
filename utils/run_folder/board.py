"""TensorBoard's event files, written by the thread that calls: an error reaches the caller, and nothing can stall.

``tensorboardX.SummaryWriter`` writes from a thread of its own; where that dies, on a full disk, its queue fills and the
next call waits for ever.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram_raw, image, scalar, text

PICTURE_WIDTH = 1600  # pixels at most: panels of Cityscapes at full size would be MBs each, at every validation
DRAWN_BARS = 30  # TensorBoard draws so many, whatever it is given: with as many, each is one class
NOTHING = 1e-12  # height of an empty bar: TensorBoard would widen the first and last full one over those of 0


class Board:
    """Event files in ``folder``, which is made if absent. Every method may raise OSError.

    Args:
        purge_step: TensorBoard leaves out what earlier files say of this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            self._write(Event(step=purge_step, file_version="brain.Event:2"))
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def _add(self, summary: Summary, step: int) -> None:
        self._write(Event(step=step, summary=summary))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._add(scalar(name, value), step)

    def bars(self, step: int, name: str, heights: Sequence[float]) -> None:
        """A histogram whose bar from c to c + 1 is ``heights[c]``; all that follow are empty."""
        bars = np.full(DRAWN_BARS * math.ceil(len(heights) / DRAWN_BARS), NOTHING)
        bars[: len(heights)] = np.maximum(heights, NOTHING)
        left = np.arange(len(bars))
        moments = {"num": bars.sum(), "sum": (left * bars).sum(), "sum_squares": (left**2 * bars).sum()}
        limits = {"min": 0, "max": len(bars), "bucket_limits": left + 1}
        self._add(histogram_raw(name, bucket_counts=bars, **limits, **moments), step)

    def document(self, step: int, name: str, content: str) -> None:
        """A preformatted text."""
        self._add(text(name, f"```\n{content}\n```"), step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture, shrunk to ``PICTURE_WIDTH`` or less."""
        small = picture.reduce(math.ceil(picture.width / PICTURE_WIDTH))
        self._add(image(name, np.array(small), dataformats="HWC"), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
