"""Stop politely: the first stop signal lets the step in progress finish, another ends the process."""

import os
import signal
import time
from types import FrameType, TracebackType

from dataset.program import HANGUP, STOPPED, TORCHRUN, stop_signals

ECHO = 5.0  # seconds in which the same signal counts once: SLURM's srun and its daemon may both send it


class StopSignals:
    """While entered, ``received`` is the number of the first stop signal, 0 before.

    The same signal counts once within ``ECHO`` seconds, and under torchrun, which repeats a signal as SIGTERM, any. A
    hangup counts once, as kernel and shell may both send one, and not at all where it is ignored.

    Attributes:
        hangup_stops: False under ``nohup``: the run shall outlive its terminal and whoever reads its output.
    """

    def __init__(self) -> None:
        self.received, self._when, self._parent = 0, 0.0, os.getppid()
        self.hangup_stops = HANGUP is None or HANGUP in stop_signals()

    def __enter__(self) -> "StopSignals":
        self._handlers = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is SystemExit:
            return  # the process ends now; the same signal once more must not break off its log and its lock
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def orphaned(self) -> bool:
        """Whether torchrun, which started this process, has ended: nobody else would stop or restart it."""
        return TORCHRUN in os.environ and os.getppid() != self._parent

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP and self.received:
            return
        if self.received in (0, HANGUP):
            self.received, self._when = number, time.monotonic()
            self._first(number)
        elif time.monotonic() - self._when >= ECHO or (number != self.received and TORCHRUN not in os.environ):
            os._exit(128 + number)

    def _first(self, number: int) -> None:
        """What else the first signal does."""


class Unwinding(StopSignals):
    """Where no step is in progress: the first signal ends the run at once, by ``SystemExit``, which closes and unlocks.

    Attributes:
        over: the run is closing anyway, which no signal breaks off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.over = False

    def _first(self, number: int) -> None:
        if not self.over:
            raise SystemExit(STOPPED)
