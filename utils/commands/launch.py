"""``torchrun`` that lets its processes finish when it is told to stop, and ends as they did: with their status.

torchrun alone gives them 30 seconds after a signal, loses their status, and starts again whatever has ended.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api as torch_launcher
from torch.distributed.run import main as torchrun

from dataset.failures import exit_after
from dataset.messages import MENDABLE
from utils.commands import nodes
from utils.launcher import LAUNCHER
from utils.training.signals import STOPPED, StopSignals


def status_of(failures: Mapping[int, ProcessFailure], signalled: bool) -> int:
    """The status that tells most of why a group of processes has ended; ``failures`` are in the order of their ends.

    That is the first one's, as torchrun sends SIGTERM to the others; but of an error the user has to mend, the others
    may end before the process that met it; and of a signal, before they can stop politely.
    """
    statuses = [failure.exitcode for failure in failures.values()]
    if signalled and STOPPED in statuses:
        return STOPPED
    return MENDABLE if MENDABLE in statuses and statuses[0] != STOPPED else statuses[0]


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
        signalled = bool(self._signals.received)
        if signalled or (result.failures and status_of(result.failures, signalled) in (STOPPED, MENDABLE)):
            self._remaining_restarts = 0
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: ``status_of`` the processes that failed, as a shell has it; 0 if none did."""
    nodes.register()
    os.environ[LAUNCHER] = str(os.getpid())
    signals = PassedOn()
    # torchrun takes no agent as an argument
    torch_launcher.LocalElasticAgent = partial(Agent, signals)  # type: ignore[assignment, misc]
    try:
        torchrun(argv)
    except SignalException as error:
        return 128 + (signals.received or error.sigval)
    except ChildFailedError as error:
        status = status_of(error.failures, bool(signals.received))
        return status if status > 0 else 128 - status  # below 0: minus the signal
    return 0


if __name__ == "__main__":
    exit_after(main, "run.sh")
