"""A run that gets a stop signal, or loses the reader of its output, saves and can be resumed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train_source_only
from dataset.program import exit_after
from tests.processes import ROOT
from tests.training.test_resume import KEYS, assert_same_run, uninterrupted  # noqa: F401
from utils import signals
from utils.builders import data
from utils.engine.trainer import Trainer
from utils.run_folder.log import RunLog
from utils.signals import STOPPED, StopSignals


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """As if the tests were not started by ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


@pytest.mark.slow
def test_signal_during_the_validation_ends_it_and_the_next_start_repeats_it(
    command,
    uninterrupted,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    images = []

    def signalled(self, step, name, picture):
        images.append(name)
        if len(images) == 4:  # the first of the second validation
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "picture", signalled)
    with pytest.raises(SystemExit) as stopped:
        train_source_only.main(command(tmp_path, "run", *KEYS))
    state = torch.load(tmp_path / "run/last.pth", weights_only=True)
    assert stopped.value.code == STOPPED and len(images) == 4 and state["step"] == 4 and not state["validated"]
    assert "repeat the validation" in log_of(tmp_path / "run") and "SystemExit" not in log_of(tmp_path / "run")
    monkeypatch.undo()
    train_source_only.main(command(tmp_path, "run", *KEYS))
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_hangup_saves_however_often_it_comes_and_nohup_ignores_it(command, tmp_path, monkeypatch):
    step = Trainer.step

    def hung_up(self):
        for _ in range(3):  # the kernel and the shell both send it
            os.kill(os.getpid(), signal.SIGHUP)
        return step(self)

    monkeypatch.setattr(Trainer, "step", hung_up)
    with pytest.raises(SystemExit) as stopped:
        train_source_only.main(command(tmp_path, "run", "val.held_out=0"))
    assert stopped.value.code == STOPPED
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    train_source_only.main(command(tmp_path, "run", "val.held_out=0"))
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 2


def train_for_a_reader_that_goes(arguments: list[str]) -> None:
    step = Trainer.step
    reader, writer = os.pipe()
    os.dup2(writer, 1)

    def alone(self):
        if self.state.step == 1:
            os.close(reader)
        return step(self)

    Trainer.step = alone
    os.close(writer)
    train_source_only.main(arguments)


@pytest.mark.slow
def test_lost_reader_of_the_output_stops_the_run_politely(command, tmp_path, fork):
    keys = ["train.num_steps=100000", "val.every=100000"]
    status, output = fork(train_for_a_reader_that_goes, command(tmp_path, "run", *keys)).ended()
    assert status == STOPPED, output
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] >= 2
    assert "Broken pipe" in log_of(tmp_path / "run") and "nobody reads the output" in log_of(tmp_path / "run")


def test_same_signal_counts_once_for_some_seconds_and_ends_the_process_later(monkeypatch):
    """Schedulers send it twice."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM and not ended
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [128 + signal.SIGINT]
        monkeypatch.setattr(signals, "ECHO", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [128 + signal.SIGINT, 128 + signal.SIGTERM]


def test_same_signal_once_more_does_not_break_off_the_end_of_a_stopped_run():
    ended = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    for error in (SystemExit, ValueError):
        with pytest.raises(error), StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            raise error
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == ([] if error is SystemExit else [signal.SIGTERM])
        signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_signal_before_the_first_step_unlocks_and_leaves_no_folder(command, tmp_path, monkeypatch, number):
    """A scheduler may restart the run on another machine, which cannot check whether the process has ended."""

    def signalled(*arguments, **options):
        assert (tmp_path / "run/run.lock").exists()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(data, "find_samples", signalled)
    signal.signal(number, lambda number, frame: None)  # a signal without a handler would end the tests
    with pytest.raises(SystemExit) as stopped:
        train_source_only.main(command(tmp_path, "run"))
    assert stopped.value.code == STOPPED and not (tmp_path / "run").exists()


def test_signal_while_the_interpreter_ends_leaves_the_status():
    """A scheduler's second signal, after the run has saved. The status means that the run can be resumed."""
    caught = []
    signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    with pytest.raises(SystemExit) as stopped:
        exit_after(lambda: STOPPED)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == STOPPED and not caught


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_modules_are_imported_has_the_same_status_and_words(command, tmp_path, number):
    arguments = [sys.executable, "train_source_only.py", *command(tmp_path, "run")]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():  # torch is being loaded
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == STOPPED and "with nothing to save: run the same command to resume" in output
    assert not (tmp_path / "run").exists()
