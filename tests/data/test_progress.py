"""Progress: a terminal of 80 columns gets a bar with the loss; other outputs get no carriage return."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from dataset import progress
from dataset.progress import Progress, duration


def shown(monkeypatch: pytest.MonkeyPatch, stream: TextIO, title: str, **options) -> None:
    """Write the output of a loop over training steps."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(range(34990, 35000), title, start=34990, **options) as bar:
        for _ in bar:
            bar.set_postfix_str("source 0.123, target 0.456, data 0.02s of 1.20s", refresh=False)
    stream.flush()


@contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, int]]:
    """A stream to a terminal, and the file descriptor at its other end."""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(end, "w") as stream:
        yield stream, screen
    os.close(screen)


def test_loss_fits_into_80_columns(monkeypatch):
    monkeypatch.setattr(progress, "REDRAW", 0)
    with terminal(80) as (stream, screen):
        shown(monkeypatch, stream, "pycda_spatial_ratio_exp001")
        drawn = b""
        while not drawn.endswith(b"\n"):  # a read from a terminal may return a part
            drawn += os.read(screen, 2**16)
        states = drawn.decode().strip().split("\r")
    assert "..atial_ratio_exp001: 34999/35000, source 0.123, target 0.456" in states[-3]
    assert len(states) > 10 and all(len(state.strip("\n")) < 80 for state in states)


def test_no_terminal_no_carriage_return(monkeypatch):
    def lines(**options) -> list[str]:
        stream = io.StringIO()
        shown(monkeypatch, stream, "run", **options)
        return stream.getvalue().split("\n")

    assert lines() == [""]
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    assert lines()[:2] == ["run: 34991 of 35000", "run: 34992 of 35000"] and len(lines()) == 11
    assert lines(lines=False) == lines(enabled=False) == [""]


def test_items_of_unknown_number(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    assert list(Progress((i for i in range(2)), "stream")) == [0, 1]
    assert capsys.readouterr().err == "stream: 1 of ?\nstream: 2 of ?\n"


@pytest.mark.parametrize(("after", "expected"), [(3, ["about 10 s left, 2.00 s a step"]), (20, [])])
def test_remaining_time_is_shown_once(monkeypatch, after, expected):
    """After enough items and seconds; a slow first item does not count."""
    clock = iter([0, 100, *range(102, 140, 2)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "KNOWN_AFTER", after)
    told: list[str] = []
    list(Progress(range(8), "run", lines=False, report=told.append))
    assert told == expected


def test_duration_is_readable():
    assert [duration(s) for s in (12.3, 99, 150, 5400, 9000)] == [
        "12 s",
        "99 s",
        "2.5 minutes",
        "90.0 minutes",
        "2.5 hours",
    ]
