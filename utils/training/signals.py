"""Stop politely: the first SIGTERM, SIGINT or SIGHUP lets the step in progress finish, another ends the process."""

import os
import signal
import time
from types import FrameType, TracebackType

from utils.launcher import is_launched

STOPPED = 75  # exit status of a run that was stopped and can go on (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows; the terminal was closed, or ssh lost
ECHO = 5.0  # seconds in which the same signal counts once: SLURM's srun and its daemon may both send it


class StopSignals:
    """While entered, ``received`` is the number of the first stop signal, 0 before.

    The same signal counts once within ``ECHO`` seconds. A hangup counts once, as kernel and shell may both send one,
    and not at all where it is ignored (``nohup``). Under our launcher no second signal ends the process: the launcher
    does that when it gets one itself, and also sends SIGTERM to whoever is left when the first process has ended.

    Attributes:
        hangup_stops: False under ``nohup``: the run shall outlive its terminal and whoever reads its output.
    """

    def __init__(self) -> None:
        self.received, self._when = 0, 0.0
        self.hangup_stops = HANGUP is None or signal.getsignal(HANGUP) is not signal.SIG_IGN

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def install(self) -> None:
        """Take the signals over from whoever has them now."""
        numbers = (*SIGNALS, HANGUP) if HANGUP is not None and self.hangup_stops else SIGNALS
        self._handlers = {number: signal.signal(number, self._handle) for number in numbers}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is SystemExit:
            return  # the process ends now; the same signal once more must not break off its log and its lock
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP and self.received:
            return
        if self.received not in SIGNALS:
            self.received, self._when = number, time.monotonic()
            self._first(number)
        elif number != self.received or time.monotonic() - self._when >= ECHO:
            self._second(number)

    def _first(self, number: int) -> None:
        """What else the first signal does."""

    def _second(self, number: int) -> None:
        if not is_launched():
            os._exit(128 + number)


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
