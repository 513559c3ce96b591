"""Several processes under ``run.sh`` that are told to stop, or lose their launcher, stop as one process does."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.training.test_distributed import ROOT, finish, launch
from tests.training.test_resume import KEYS, assert_same_run
from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.folder import open_run_folder
from utils.signals import STOPPED

pytestmark = pytest.mark.slow

LIMIT = 120.0  # seconds that a condition may take on a busy machine
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


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT} s: {what}"
        time.sleep(0.02)


class Launched:
    """``script`` of ``folder`` in two processes, which wait in the files ``names`` (with their process ids)."""

    def __init__(self, folder: Path, script: str, arguments: list[str], names: str, **variables: str) -> None:
        self.launcher = launch(2, str(folder / script), ["--config", *arguments], PYTHONPATH=str(ROOT), **variables)
        said = [folder / f"{names}{rank}" for rank in (0, 1)]
        until(lambda: all(path.is_file() for path in said) or self.launcher.poll() is not None, "both processes wait")
        assert self.launcher.poll() is None, self.launcher.communicate()[0]
        self.workers = [int(path.read_text()) for path in said]

    def end(self) -> tuple[int, str]:
        """Exit status and output, which ends with the last process that has it."""
        output, _ = self.launcher.communicate(timeout=LIMIT)
        return self.launcher.returncode, output


def stopped(folder: Path, arguments: list[str], step: int, signals: Callable[[Launched], None]) -> None:
    """Start before ``step``, send ``signals``, and see the run saved after it and not started again."""
    run = Launched(folder, "gated.py", arguments, f"step{step}-rank", MAX_RESTARTS="3")
    signals(run)
    (folder / f"go{step}").touch()
    status, output = run.end()
    assert status == STOPPED, output
    assert torch.load(folder / "run/last.pth", weights_only=True)["step"] == step + 1
    assert not (folder / "run/run.lock").exists()


def test_two_processes_stop_by_signal_or_without_launcher_and_go_on_bit_for_bit(command, tmp_path):
    """A launcher that is killed; a signal to a single process; a scheduler's to the launcher."""
    (tmp_path / "gated.py").write_text(GATED)
    arguments = command(tmp_path, "run", *KEYS, "val.every=6")[1:]

    orphans = Launched(tmp_path, "gated.py", arguments, "step0-rank")
    orphans.launcher.kill()
    orphans.launcher.wait()
    with (
        pytest.raises(CheckpointError, match=rf"another run \(process {orphans.workers[0]} on"),
        open_run_folder(tmp_path / "run"),
    ):
        pass
    (tmp_path / "go0").touch()
    said = orphans.launcher.stdout.read()  # until both have ended
    assert "torchrun has ended after step 1" in said and "the same command goes on from there" in said
    step = torch.load(tmp_path / "run/last.pth", weights_only=True)["step"]
    assert step == 1

    stopped(tmp_path, arguments, step, lambda run: os.kill(run.workers[1], signal.SIGINT))
    stopped(tmp_path, arguments, step + 1, lambda run: run.launcher.send_signal(signal.SIGUSR1))
    finish(launch(2, "train_source_only.py", ["--config", *arguments]))
    finish(launch(2, "train_source_only.py", command(tmp_path, "straight", *KEYS, "val.every=6")))
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_all_and_twice_stops_politely_and_longer_than_torchrun_would_wait(tmp_path, number):
    """As SLURM sends it. A step and a checkpoint may take longer than torchrun's 30 seconds, which are one here."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = Launched(tmp_path, "slow.py", ["3", "5"], "rank", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    for pid in 2 * [*run.workers, run.launcher.pid]:
        os.kill(pid, number)
        time.sleep(0.05)  # or the kernel makes one of two
    status, output = run.end()
    assert status == STOPPED and len(list(tmp_path.glob("saved*"))) == 2, output


def test_another_signal_to_the_launcher_ends_all_at_once(tmp_path):
    """5 seconds after the first one, which are none here."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = Launched(tmp_path, "slow.py", ["100", "0"], "rank")
    run.launcher.send_signal(signal.SIGTERM)
    until(lambda: len(list(tmp_path.glob("told*"))) == 2, "both processes are told")
    run.launcher.send_signal(signal.SIGTERM)
    status, _ = run.end()
    assert status == STOPPED and not list(tmp_path.glob("saved*"))


def test_hangup_under_nohup_stops_nothing(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = Launched(tmp_path, "slow.py", ["0", "5"], "rank")
    for pid in [*run.workers, run.launcher.pid]:
        os.kill(pid, signal.SIGHUP)
    time.sleep(1)
    assert run.launcher.poll() is None and not list(tmp_path.glob("told*"))
    run.launcher.send_signal(signal.SIGTERM)
    assert run.end()[0] == STOPPED


def test_what_the_user_has_to_mend_is_not_tried_again(command, tmp_path):
    """Where one process alone meets it, and the other one, not in a step, is then told by torchrun to stop."""
    script = tmp_path / "mendable.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from dataset.program import exit_after\n"
        "from utils.signals import Unwinding\n"
        "ready = pathlib.Path(__file__).with_name('ready')\n"
        "def main():\n"
        "    with Unwinding():\n"
        "        if os.environ['RANK'] == '0':\n"
        "            ready.touch()\n"
        "            time.sleep(100)\n"
        "        while not ready.exists():\n"
        "            time.sleep(0.01)\n"
        "        raise FileNotFoundError('no such list of images')\n"
        "exit_after(main)\n"
    )
    run = launch(2, str(script), ["--config", "x"], PYTHONPATH=str(ROOT), MAX_RESTARTS="3")
    output, _ = run.communicate(timeout=LIMIT)
    assert run.returncode == 2 and output.count("no such list of images") == 1, output
