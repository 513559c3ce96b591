"""Progress: a bar that shows its loss at 80 columns on a terminal, and no carriage return anywhere else."""

import io
import sys

import pytest

from dataset import progress
from dataset.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, title: str, **options) -> str:
    """What a loop over a training's steps writes."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(range(34990, 35000), title, start=34990, **options) as bar:
        for _ in bar:
            bar.note("source 0.123, target 0.456, data 0.02s of 1.20s")
    return stream.getvalue()


def test_loss_fits_into_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "REDRAW", 0)
    states = shown(monkeypatch, Terminal(), "pycda_spatial_ratio_exp001").strip().split("\r")
    assert "34999/35000, source 0.123, target 0.456" in states[-2] and states[-2].startswith("..spatial_ratio")
    assert all(len(state) <= 80 for state in states)


def test_no_terminal_no_carriage_return(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), "run") == ""
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    lines = shown(monkeypatch, io.StringIO(), "run").splitlines()
    assert lines[0] == "run: 34991 of 35000" and lines[-1] == "run: 35000 of 35000" and len(lines) == 10
    assert shown(monkeypatch, io.StringIO(), "run", lines=False) == ""
    assert shown(monkeypatch, io.StringIO(), "run", enabled=False) == ""
    assert shown(monkeypatch, Terminal(), "run", enabled=False) == ""


def test_items_of_unknown_number(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    assert list(Progress((i for i in range(2)), "stream")) == [0, 1]
    assert capsys.readouterr().err == "stream: 1 of ?\nstream: 2 of ?\n"
