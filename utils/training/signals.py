"""Stop politely: the first SIGTERM, SIGINT or SIGHUP lets the step in progress finish, the second ends the process."""

import os
import signal
from types import FrameType, TracebackType

STOPPED = 75  # exit status of a run that was stopped and can go on (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows; the terminal was closed, or ssh lost


class StopSignals:
    """While entered, ``received`` is the number of the first stop signal, 0 before.

    A hangup counts once, as kernel and shell may both send one, and not at all where it is ignored (``nohup``).

    Attributes:
        hangup_stops: False under ``nohup``: the run shall outlive its terminal and whoever reads its output.
    """

    def __init__(self) -> None:
        self.received = 0
        self.hangup_stops = HANGUP is None or signal.getsignal(HANGUP) is not signal.SIG_IGN

    def __enter__(self) -> "StopSignals":
        numbers = (*SIGNALS, HANGUP) if HANGUP is not None and self.hangup_stops else SIGNALS
        self._handlers = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != HANGUP and self.received in SIGNALS:
            os._exit(128 + number)
        if number != HANGUP or not self.received:
            self.received = number
