"""Processes that tests start: by ``run.sh``, or forked from a server that has imported torch.

Importing all that a training needs takes 4 s of a core. A forked process has it from the start; else it is a program
as any other, with its arguments, signals, output and exit status.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dataset.program import exit_after
from utils.launch import PROGRAM
from utils.launch import main as launch_main

ROOT = Path(__file__).parents[1]
LIMIT = 120.0  # seconds that a condition may take on a busy machine
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.imported"])


def launch(processes: int, script: str, arguments: Sequence[str], **variables: str) -> subprocess.Popen:
    """``run.sh`` with ``arguments`` as ``command`` gives them (--config FILE ...)."""
    usual = {"NPROC": str(processes), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    run = ["sh", str(ROOT / "run.sh"), script, *arguments[1:]]
    return subprocess.Popen(
        run, env=os.environ | usual | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """Exit status and output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it, ``LIMIT`` seconds at most."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(arguments: Sequence[str]) -> None:
    """The launcher as ``run.sh`` starts it, in a forked process."""
    exit_after(lambda: launch_main(arguments), PROGRAM, resumable=True)


class Forked:
    """A script, or a function of its arguments, in a session of its own and with one thread.

    A hangup counts, as where the tests were not started by ``nohup``.
    """

    def __init__(self, script: str | Callable[..., int | None], arguments: Sequence[str], **variables: str) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._output = Path(name)
        self._process = FORKS.Process(target=_run, args=(script, list(arguments), name, variables))
        self._process.start()
        self.pid: int = self._process.pid

    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text()

    def running(self) -> bool:
        return self._process.is_alive()

    def ended(self, timeout: float = 240) -> tuple[int, str]:
        """Exit status, or minus the signal that ended it, and output."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"not within {timeout} s: {self.output()}"
        return self._process.exitcode, self.output()

    def kill(self) -> None:
        """It and what it has started, where it has not ended."""
        if self.running():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no session yet
                self._process.kill()
        self._process.join()
        self._output.unlink(missing_ok=True)


def _run(script: str | Callable[..., int | None], arguments: list[str], output: str, variables: dict[str, str]) -> None:
    import torch

    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # its own processes start as usual
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stream = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    os.environ.update(variables)
    torch.set_num_threads(1)
    if callable(script):
        exit_after(lambda: script(arguments), script.__name__)
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def as_two(
    start: Callable[..., Forked], script: str | Callable[..., int | None], *arguments: list[str]
) -> list[Forked]:
    """``start`` a process with each of two lists of arguments, in the environment that torchrun gives to two."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return [start(script, own, **meeting, **rank) for own, rank in zip(arguments, ranks, strict=True)]
