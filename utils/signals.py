"""Graceful stop: the first stop signal lets the current step finish, another one ends the process."""

import os
import signal
import time
from types import FrameType, TracebackType

from dataset.program import HANGUP, STOPPED, TORCHRUN, stop_signals

ECHO = 5.0  # seconds in which a repeated signal counts once: SLURM's srun and its daemon may both send it


class StopSignals:
    """Inside the block, ``received`` is the number of the first stop signal, and 0 before it.

    A repeated signal counts once within ``ECHO`` seconds. Under torchrun, different signals in that time count once
    too, because torchrun repeats a signal as SIGTERM. A hangup always counts once, because kernel and shell may both
    send it. An ignored hangup does not count.

    Args:
        unwind: for the time outside of a training's steps: the first signal raises ``SystemExit``, which closes the
            logs and the lock. Set it to False while the run is closing anyway.

    Attributes:
        hangup_stops: False under ``nohup``: the run continues without its terminal and without a reader of its output.
    """

    def __init__(self, *, unwind: bool = False) -> None:
        self.unwind = unwind
        self.received, self._when, self._parent = 0, 0.0, os.getppid()
        self.hangup_stops = HANGUP is None or HANGUP in stop_signals()

    def __enter__(self) -> "StopSignals":
        self._handlers = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is SystemExit:
            return  # the process ends now; a repeated signal must not interrupt closing the log and the lock
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def orphaned(self) -> bool:
        """Whether the torchrun that started this process has ended: nothing else would stop or restart the process."""
        return TORCHRUN in os.environ and os.getppid() != self._parent

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP and self.received:
            return
        if self.received in (0, HANGUP):
            self.received, self._when = number, time.monotonic()
            if self.unwind:
                raise SystemExit(STOPPED)
        elif time.monotonic() - self._when >= ECHO or (number != self.received and TORCHRUN not in os.environ):
            os._exit(128 + number)
