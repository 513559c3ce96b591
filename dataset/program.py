"""Start and end of every program here: the cores that it uses; its exit status, error line or traceback."""

import atexit
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dataset.messages import MENDABLE, UserError, of_loader

INTERRUPTED = 130  # exit status
STOPPED = 75  # exit status of a run that was stopped and can be resumed (EX_TEMPFAIL)
NOTHING_SAVED = "stopped by signal {} with nothing to save: run the same command to resume"
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows; sent when the terminal is closed or ssh is lost
# Errors that are no bugs: our own errors, files and folders, a training that diverges.
EXPECTED = (UserError, OSError, FloatingPointError)
TRACEBACK = "PYCDA_TRACEBACK"  # environment variable: 1 shows where an expected error comes from
# Signals with which schedulers and terminals stop a program, beside SIGINT; Windows has only the first.
SCHEDULERS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
]
TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable of the processes that torchrun starts
# Parts of out-of-memory messages without an own error type: torch's allocators, oneDNN, cuDNN and cuBLAS.
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed", "create a memory")
OUT_OF_MEMORY = "Set train.amp=bf16, train.checkpoint_encoder=true or a smaller train.batch_size to use less"
THREADS, WAITING, PASSIVE = "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"  # environment variables of OpenMP
# Rounds that a waiting thread spins before it releases its core, less than a millisecond. With OpenMP's default a step
# of the demo takes 0.18 s, and 6.3 s beside two busy processes. With this value it takes 0.18 s and 1.6 s.
SPINS = 20_000


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity mask (only Linux) and its cgroup's quota."""
    return max(1, math.floor(min(_visible_cores(), cgroup_quota())))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(root: Path = Path("/")) -> float:
    """CPUs that a container or scheduler allows for this process (cgroups, version 2); infinite without a limit.

    Args:
        root: folder that contains the kernel's ``proc`` and ``sys``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in (line for line in lines if line.startswith("0::")):
        group = root / "sys/fs/cgroup" / line.removeprefix("0::").strip("/")
        # Parent groups limit too. A container may see its own group as the top one under another name.
        for folder in (group, *group.parents):
            try:
                quota, period = (folder / "cpu.max").read_text().split()
            except OSError:
                continue
            quotas.append(math.inf if quota == "max" else int(quota) / int(period))
    return min(quotas)


def share_cores() -> None:
    """Limit torch's threads to the usable cores. Call it before torch is imported. The user's settings stay.

    Each of ``NPROC`` processes gets its share. Without any limit, torch itself chooses the number of threads, because
    it can tell physical cores from virtual ones.
    """
    cores, processes = usable_cores(), os.environ.get("NPROC", "")
    number = int(processes) if processes.isdigit() and int(processes) else 1
    if number > 1 or cores < _visible_cores():
        os.environ.setdefault(THREADS, str(max(1, cores // number)))
    if PASSIVE not in os.environ:
        os.environ.setdefault(WAITING, str(SPINS))


def loader_processes(wanted: int) -> int:
    """Number of loader processes: ``wanted``, but at most this process's share of the cores."""
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(wanted, max(1, share))


def one_line(error: BaseException) -> str:
    """Message of ``error`` on one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    text = of_loader(text)
    if out_of_memory(error):
        text = f"out of memory: {text.partition('. ')[0] or 'the system has no more'}. {OUT_OF_MEMORY}"
    return " ".join(text.split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means too little memory on the CPU or a GPU. For the CPU, torch only says so in the text."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    if isinstance(error, UserError):  # our own messages may contain the same words
        return False
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in NO_MEMORY)


def free_memory() -> float:
    """Bytes that this process can still allocate without swapping (Linux; infinite on other systems)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return math.inf


def say(message: str, program: str | None = None) -> None:
    """Print the last line of a program on stderr. Each of several processes prints its own line with its rank."""
    sys.stdout.flush()
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"{program or Path(sys.argv[0]).name}: {rank}{message}", file=sys.stderr, flush=True)


def stop_signals() -> list[signal.Signals]:
    """Signals that stop a training: SIGINT and the schedulers' signals; SIGHUP unless it is ignored (``nohup``)."""
    ignored = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    return [number for number in (signal.SIGINT, *SCHEDULERS) if not (ignored and number == HANGUP)]


def _stop(number: int, frame: FrameType | None) -> None:
    say(NOTHING_SAVED.format(number))
    raise SystemExit(STOPPED)


def exit_after(main: Callable[[], int | None], program: str | None = None, *, resumable: bool = False) -> NoReturn:
    """Run ``main`` and end the process with its return value, or with one line about an error of the user.

    Before that, ``share_cores`` limits the threads of torch, which ``main`` imports. A text in ``SystemExit`` is also
    printed as one line. Other errors are bugs: they keep their traceback and status 1. While the interpreter ends,
    which takes a second with torch, a scheduler's signal no longer changes the status.

    Args:
        program: name of the program in that line; None: the file that was started.
        resumable: a stop signal gives the status of a run that can be resumed, also before ``main`` handles signals
            itself.
    """
    share_cores()
    if resumable:
        for number in stop_signals():
            signal.signal(number, _stop)
    status: str | int | None = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)

    if TORCHRUN in os.environ:
        # Registered before torch is imported, so it runs last. A thread of torch that waits for the interpreter at its
        # end aborts the process: about one in some hundred finished runs of two processes ended with SIGABRT.
        atexit.register(leave)
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, for example head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            say(f"error: {stopped.code}", program)
        status = MENDABLE if isinstance(stopped.code, str) else stopped.code
    except KeyboardInterrupt:
        say("interrupted", program)
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not (isinstance(error, EXPECTED) or out_of_memory(error)):
            raise
        say(f"error: {one_line(error)}", program)
        status = error.status if isinstance(error, UserError) else MENDABLE
    for number in SCHEDULERS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
