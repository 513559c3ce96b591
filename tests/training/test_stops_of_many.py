"""Several processes under ``run.sh`` that are told to stop, or lose their launcher, stop as one process does."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.processes import LIMIT, ROOT, Forked, ended, launch, launched, until
from tests.training.test_resume import KEYS, assert_same_run
from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.folder import open_run_folder
from utils.signals import STOPPED

pytestmark = pytest.mark.slow(5)  # seconds

# Source only, whose processes say in a file which step they start with, and begin it when a file lets them.
GATED = """
import os, pathlib, sys, time
import train_source_only
from dataset.program import exit_after
from utils import distributed
from utils.engine.trainer import Trainer

step, folder, started = Trainer.step, pathlib.Path(__file__).parent, []

def gated(self):
    index = self.state.step
    if not started:
        started.append(index)
        said = folder / f"step{index}-rank{distributed.rank()}"
        said.with_suffix(".tmp").write_text(str(os.getpid()))
        said.with_suffix(".tmp").rename(said)
        end = time.monotonic() + 120
        while not (folder / f"go{index}").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
    return step(self)

Trainer.step = gated
exit_after(train_source_only.main)
"""
# In place of a training: stops SECONDS after the first signal, as if a step and a checkpoint took that long; the same
# signal counts once for ECHO seconds.
SLOW = """
import os, pathlib, sys, time
from utils import signals as module
from utils.signals import STOPPED, StopSignals

folder, seconds = pathlib.Path(__file__).parent, float(sys.argv[1])
module.ECHO = float(sys.argv[2])
with StopSignals() as signals:
    said = folder / ("rank" + os.environ["RANK"])
    said.with_suffix(".tmp").write_text(str(os.getpid()))
    said.with_suffix(".tmp").rename(said)
    end = time.monotonic() + 120
    while not signals.received:
        assert time.monotonic() < end
        time.sleep(0.01)
    (folder / ("told" + os.environ["RANK"])).touch()
    time.sleep(seconds)
    (folder / ("saved" + os.environ["RANK"])).touch()
    sys.exit(STOPPED)
"""


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """As where the tests were not started by ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def both_wait(folder: Path, names: str, running: Callable[[], bool]) -> list[int]:
    """Ids of two processes that wait in the files ``names`` of ``folder``."""
    said = [folder / f"{names}{rank}" for rank in (0, 1)]
    until(lambda: all(path.is_file() for path in said) or not running(), "both processes wait")
    assert running()
    return [int(path.read_text()) for path in said]


@pytest.fixture
def launcher(fork) -> Callable[..., Forked]:
    """The launcher alone, without ``run.sh``: ``launcher(SCRIPT, arguments)`` of two processes."""

    def start(script: Path, arguments: list[str], **variables: str) -> Forked:
        return fork(launched, ["5", str(script), *arguments], NPROC="2", PYTHONPATH=str(ROOT), **variables)

    return start


def test_two_processes_stop_by_signal_or_without_launcher_and_go_on_bit_for_bit(command, tmp_path, launcher, fork_two):
    """A launcher that is killed; a signal to a single process. (Signals to the launcher: in the tests below.)"""
    script = tmp_path / "gated.py"
    script.write_text(GATED)
    arguments = command(tmp_path, "run", *KEYS, "val.every=6")

    orphans = launcher(script, arguments)
    workers = both_wait(tmp_path, "step0-rank", orphans.running)
    os.kill(orphans.pid, signal.SIGKILL)
    orphans.ended(LIMIT)
    with (
        pytest.raises(CheckpointError, match=rf"another run \(process {workers[0]} on"),
        open_run_folder(tmp_path / "run"),
    ):
        pass
    (tmp_path / "go0").touch()
    until(lambda: not (tmp_path / "run/run.lock").exists(), "the run is left")
    said = orphans.output()
    assert "stopped after step 1" in said and "torchrun has ended; saved" in said and "same command to resume" in said
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 1

    first, second = fork_two(str(script), arguments, arguments)
    both_wait(tmp_path, "step1-rank", second.running)
    os.kill(second.pid, signal.SIGINT)
    (tmp_path / "go1").touch()
    for process in (first, second):
        status, output = process.ended(LIMIT)
        assert status == STOPPED, output
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 2
    assert not (tmp_path / "run/run.lock").exists()

    for name in ("run", "straight"):
        same = command(tmp_path, name, *KEYS, "val.every=6")
        for process in fork_two("train_source_only.py", same, same):
            status, output = process.ended()
            assert status == 0, output
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.fixture
def slow(launcher, tmp_path) -> Callable[..., tuple[Forked, list[int]]]:
    """``slow(SECONDS, ECHO)`` starts ``SLOW`` in two processes, which wait for a signal: the launcher, their ids."""
    (tmp_path / "slow.py").write_text(SLOW)

    def start(*arguments: str, **variables: str) -> tuple[Forked, list[int]]:
        process = launcher(tmp_path / "slow.py", list(arguments), MAX_RESTARTS="3", **variables)
        return process, both_wait(tmp_path, "rank", process.running)

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_all_and_twice_stops_politely_and_longer_than_torchrun_would_wait(tmp_path, slow, number):
    """As SLURM sends it. A step and a checkpoint may take longer than torchrun's 30 seconds, which are one here."""
    process, workers = slow("3", "5", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    for pid in 2 * [*workers, process.pid]:
        os.kill(pid, number)
        time.sleep(0.05)  # or the kernel makes one of two
    status, output = process.ended(LIMIT)
    assert status == STOPPED and len(list(tmp_path.glob("saved*"))) == 2, output


def test_another_signal_to_the_launcher_ends_all_at_once(tmp_path, slow):
    """5 seconds after the first one, which are none here."""
    process, _ = slow("100", "0")
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: len(list(tmp_path.glob("told*"))) == 2, "both processes are told")
    os.kill(process.pid, signal.SIGTERM)
    status, _ = process.ended(LIMIT)
    assert status == STOPPED and not list(tmp_path.glob("saved*"))


def test_hangup_under_nohup_stops_nothing(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = launch(2, str(tmp_path / "slow.py"), ["--config", "0", "5"], PYTHONPATH=str(ROOT))
    for pid in [*both_wait(tmp_path, "rank", lambda: process.poll() is None), process.pid]:
        os.kill(pid, signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None and not list(tmp_path.glob("told*"))
    process.send_signal(signal.SIGTERM)
    assert ended(process, LIMIT)[0] == STOPPED


# One process meets what the user has to mend, and the other one, not in a step, is then told to stop.
MENDABLE = """
import os, pathlib, time
from dataset.program import exit_after
from utils.signals import StopSignals
ready = pathlib.Path(__file__).with_name("ready")
def main():
    with StopSignals(unwind=True):
        if os.environ["RANK"] == "0":
            ready.touch()
            time.sleep(100)
        while not ready.exists():
            time.sleep(0.01)
        raise FileNotFoundError("no such list of images")
exit_after(main)
"""


def test_what_the_user_has_to_mend_is_not_tried_again(tmp_path, launcher):
    (tmp_path / "mendable.py").write_text(MENDABLE)
    status, output = launcher(tmp_path / "mendable.py", ["x"], MAX_RESTARTS="3").ended(LIMIT)
    assert status == 2 and output.count("no such list of images") == 1 and "Traceback" not in output, output
