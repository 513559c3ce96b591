"""Pictures are written by other threads while the network sees the next ones: Pillow compresses without the GIL."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

THREADS = 4
WAITING = 6  # calls at most that are not done yet, each of which holds a picture


class Background:
    """Calls in other threads, as a context whose end waits for all of them.

    What a call raises is raised by a later one or at the end of the context; calls that have not begun are then
    dropped, as they are where the context itself ends with an error.
    """

    def __init__(self) -> None:
        self.pool, self.calls = ThreadPoolExecutor(THREADS), deque[Future]()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """``function(*arguments)``, soon; waits while ``WAITING`` earlier calls are not done."""
        while len(self.calls) >= WAITING:
            self.calls.popleft().result()
        self.calls.append(self.pool.submit(function, *arguments))

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self.calls:
                self.calls.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)
