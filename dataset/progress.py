"""Long loops: how many cores may share one, and its progress, a bar on a terminal, elsewhere a line now and then."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
# What is noted comes before the times, so that it still fits into 80 columns; the bar takes what is left.
FORMAT = "{desc}: {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}, {rate_fmt}] {bar}"
TITLE_WIDTH = 20  # characters; longer titles lose their beginning, as names of runs differ at their ends
REDRAW = 0.5  # seconds between two states of a bar
LINE_EVERY = 60  # seconds between two lines where there is no terminal


def usable_cores() -> int:
    """Cores that this process may use, where the system says so (Linux); else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Progress(Generic[T]):
    """Iterate over ``items`` and show on stderr how far it is.

    Args:
        start: of how many items before these the total consists too, in a run that goes on.
        unit: what an item is.
        enabled: False shows nothing (all processes but the first).
        leave: keep the finished bar.
        lines: without a terminal, write a line every ``LINE_EVERY`` seconds; False: nothing, somebody else does.
    """

    def __init__(
        self,
        items: Iterable[T],
        title: str,
        *,
        start: int = 0,
        unit: str = "it",
        enabled: bool = True,
        leave: bool = True,
        lines: bool = True,
    ) -> None:
        self.title, self.start = title, start
        self.total = start + len(items) if isinstance(items, Sized) else None
        terminal = sys.stderr.isatty()
        self.lines = lines and enabled and not terminal
        short = title if len(title) <= TITLE_WIDTH else f"..{title[2 - TITLE_WIDTH :]}"
        options: dict[str, Any] = {"initial": start, "total": self.total, "unit": unit, "leave": leave, "disable": True}
        if enabled and terminal:
            options |= {"disable": False, "bar_format": FORMAT, "dynamic_ncols": True, "mininterval": REDRAW}
        self.bar = tqdm(items, desc=short, **options)

    def __iter__(self) -> Iterator[T]:
        spoken = time.monotonic()
        for done, item in enumerate(self.bar, start=self.start + 1):
            yield item
            if self.lines and time.monotonic() - spoken >= LINE_EVERY:
                spoken = time.monotonic()
                print(f"{self.title}: {done} of {self.total or '?'}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show ``text`` in the bar."""
        self.bar.set_postfix_str(text, refresh=False)

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
