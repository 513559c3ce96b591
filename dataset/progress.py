"""The progress of long loops: a bar on a terminal, otherwise one line a minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
# The postfix stands before the times, so that it fits into 80 columns. The bar gets the rest of the line.
FORMAT = "{desc}: {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}, {rate_fmt}] {bar}"
TITLE_WIDTH = 20  # characters; longer titles lose their beginning, because names of runs differ at their ends
REDRAW = 0.5  # seconds between two updates of a bar
LINE_EVERY = 60  # seconds between two lines without a terminal
KNOWN_AFTER = 10  # items, and seconds, before the remaining time is estimated


def duration(seconds: float) -> str:
    """``seconds`` as a text in a suitable unit: 40 s, 12.0 minutes, 3.5 hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


class Progress(tqdm, Generic[T]):
    """Iterate over ``items`` and show the progress on stderr.

    Args:
        start: number of items that were done before these, in a resumed run.
        unit: name of an item.
        enabled: False shows nothing (all processes but the first).
        leave: keep the finished bar.
        lines: without a terminal, write a line every ``LINE_EVERY`` seconds; False: write nothing, if there is a log.
        report: called once with the estimated remaining time.
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
        report: Callable[[str], None] | None = None,
    ) -> None:
        terminal = sys.stderr.isatty()
        self.title, self.start, self.report = title, start, report if enabled else None
        self.lines = lines and enabled and not terminal
        options: dict[str, Any] = {
            "initial": start,
            "unit": unit,
            "leave": leave,
            "disable": not (enabled and terminal),
        }
        options |= {"bar_format": FORMAT, "dynamic_ncols": True, "mininterval": REDRAW}
        short = title if len(title) <= TITLE_WIDTH else f"..{title[2 - TITLE_WIDTH :]}"
        total = start + len(items) if isinstance(items, Sized) else None
        super().__init__(items, short, total, **options)
        self.total = total  # a disabled tqdm does not keep it

    def __iter__(self) -> Iterator[T]:
        spoken = started = time.monotonic()
        first = None  # time at which the first item, which takes longer than others, was done
        for done, item in enumerate(super().__iter__(), start=self.start + 1):
            yield item
            now = time.monotonic()
            first = first or now
            if self.lines and now - spoken >= LINE_EVERY:
                spoken = now
                with suppress(OSError):  # the reader has ended, or the disk is full
                    print(f"{self.title}: {done} of {self.total or '?'}", file=sys.stderr, flush=True)
            new = done - self.start
            if self.report and self.total and min(new, now - started) >= KNOWN_AFTER:
                each = (now - first) / (new - 1)
                if done < self.total:
                    self.report(f"about {duration(each * (self.total - done))} left, {each:.2f} s a step")
                self.report = None
