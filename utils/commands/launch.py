"""``torchrun`` that lets its processes finish when it is told to stop, and ends as they did: with their status.

torchrun alone gives them 30 seconds after a signal, loses their status, and starts again whatever has ended.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api as torch_launcher
from torch.distributed.run import main as torchrun

from dataset.failures import MENDABLE
from utils.launcher import LAUNCHER
from utils.training.signals import STOPPED, StopSignals

FINAL = (STOPPED, MENDABLE)  # statuses that tell more than those of the other processes, and call for no restart


class PassedOn(StopSignals):
    """Stop signals of the launcher: the first one goes to its ``processes`` too, the second ends them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[int] = []

    def _first(self, number: int) -> None:
        if not self.processes:  # between two starts, or waiting for other nodes
            raise SignalException("stopped", signal.Signals(number))
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _second(self, number: int) -> None:
        raise SignalException("stopped at once", signal.SIGKILL)  # which torchrun sends to all processes


class Agent(LocalElasticAgent):
    """torchrun's agent, which has the processes, with our signals. A process that stopped is not started again, nor
    one whose error the user has to mend."""

    def __init__(self, signals: PassedOn, **options: Any) -> None:
        super().__init__(**options)
        self._signals = signals

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        processes = super()._start_workers(worker_group)
        self._signals.processes = list(processes.values())
        self._signals.install()  # here, as torchrun has just put its own handlers in place
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state != WorkerState.HEALTHY:
            self._signals.processes = []
        ended = {failure.exitcode for failure in result.failures.values()}
        if self._signals.received or ended.intersection(FINAL):
            self._remaining_restarts = 0
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 75 or 2 if a process has it, else of the one that failed first, as a shell has it; 0 if none did."""
    os.environ[LAUNCHER] = str(os.getpid())
    signals = PassedOn()
    torch_launcher.LocalElasticAgent = partial(Agent, signals)  # torchrun takes no agent as an argument
    try:
        torchrun(argv)
    except SignalException as error:
        return 128 + (signals.received or error.sigval)
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        _, first = error.get_first_failure()
        status = next((final for final in FINAL if final in statuses), first.exitcode)
        return status if status > 0 else 128 - status  # below 0: minus the signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
