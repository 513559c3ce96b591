"""torchrun for ``run.sh``: exits with the status of the process that failed first, restarts a run that can resume.

``python -m utils.launch MINUTES SCRIPT [ARGUMENT ...]``: nodes wait MINUTES for each other. NPROC, MAX_RESTARTS,
NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT are environment variables, see ``run.sh``.
"""

import math
import os
import signal
import sys
import threading
from collections.abc import Sequence

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from dataset.messages import MENDABLE
from dataset.program import NOTHING_SAVED, STOPPED, exit_after, one_line, say, stop_signals
from utils.distributed import CAUSES, LostError

PROGRAM = "run.sh"
PATIENCE = str(24 * 3600)  # seconds; after a signal, the processes may still finish step, validation and checkpoint


def meeting(minutes: float, attempt: int) -> list[str]:
    """torchrun's arguments about the nodes. Each attempt has its own port, so that it cannot join an earlier one."""
    variables = os.environ
    if int(variables.get("NNODES") or 1) == 1:
        return ["--standalone"]
    port = int(variables["MASTER_PORT"]) + attempt
    where = [f"--master_addr={variables['MASTER_ADDR']}", f"--master_port={port}"]
    who = [f"--nnodes={variables['NNODES']}", f"--node_rank={variables['NODE_RANK']}"]
    return [*who, *where, f"--rdzv_conf=timeout={math.ceil(60 * minutes)}"]


def stop_while_nodes_connect() -> None:
    """Let a stop signal end this process while torch waits for other nodes and runs no Python handlers.

    After the nodes are connected, torchrun installs its own handlers.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    ours = {int(number): signal.getsignal(number) for number in stop_signals()}

    def watch() -> None:
        while received := os.read(reader, 1):
            number = received[0]
            if number in ours and signal.getsignal(number) is ours[number]:
                say(NOTHING_SAVED.format(number), PROGRAM)
                os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


def run_once(arguments: Sequence[str]) -> int:
    """Run ``torchrun ARGUMENTS``. Returns the exit status of the process that failed first.

    The status ``MENDABLE`` of any process has priority, because other processes may end earlier. Raises LostError if
    the nodes do not connect.
    """
    try:
        torchrun(arguments)
    except DistError as error:
        raise LostError(f"the nodes did not connect within timeout_minutes: {one_line(error)} {CAUSES}") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if MENDABLE in (one.exitcode for one in error.failures.values()):
            return MENDABLE
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # negative: minus the signal
        if status != STOPPED:
            say(f"rank {rank} failed first, with status {status}", PROGRAM)
        return status
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, with restarts. Returns the exit status of the last attempt, ``STOPPED`` after a signal."""
    minutes, *script = sys.argv[1:] if argv is None else argv
    stop_while_nodes_connect()
    names = [number.name for number in stop_signals()]
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join([*names, "SIGQUIT"]))
    for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        os.environ.setdefault(name, PATIENCE)
    restarts = int(os.environ.get("MAX_RESTARTS") or 0)
    try:
        for attempt in range(restarts + 1):
            status = run_once([*meeting(float(minutes), attempt), f"--nproc_per_node={os.environ['NPROC']}", *script])
            if status in (0, STOPPED, MENDABLE):
                break
            if attempt < restarts:
                say(f"restart {attempt + 1} of {restarts}", PROGRAM)
    except SignalException:
        return STOPPED
    return status


if __name__ == "__main__":
    exit_after(main, PROGRAM, resumable=True)
