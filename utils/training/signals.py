"""Stop politely: the first SIGTERM or SIGINT lets the step in progress finish, the second ends the process at once."""

import os
import signal
from types import FrameType, TracebackType

STOPPED = 75  # exit status of a run that was stopped and can go on (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While entered, ``received`` is the number of the first stop signal, 0 before."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
