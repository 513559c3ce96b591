"""How every program here runs: the cores that it may use, and its end: one line and a status, or a bug's traceback."""

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
STOPPED = 75  # exit status of a run that was stopped and can go on (EX_TEMPFAIL)
NOTHING_SAVED = "stopped by signal {} with nothing to save: the same command goes on"
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows; the terminal was closed, or ssh lost
# Everything that is no bug: our own errors, files and folders, a training that diverges.
EXPECTED = (UserError, OSError, FloatingPointError)
TRACEBACK = "PYCDA_TRACEBACK"  # environment variable: 1 shows where an expected error comes from
# Signals by which schedulers and terminals tell a program to stop, beside SIGINT; Windows has the first alone.
SCHEDULERS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
]
TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable of the processes that torchrun starts
# In errors without a type of their own: of torch's allocators, oneDNN, cuDNN and cuBLAS.
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed", "create a memory")
OUT_OF_MEMORY = "train.amp=bf16, train.checkpoint_encoder=true or a smaller train.batch_size takes less"
THREADS, WAITING, PASSIVE = "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"  # environment variables of OpenMP
# Turns that a waiting thread spins before it gives its core away, less than a millisecond. A step of the demo takes
# 0.18 s by OpenMP's own default, and 6.3 s beside two busy processes; with this 0.18 and 1.6 s.
SPINS = 20_000


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask (Linux; else all), within its cgroup's quota."""
    return max(1, math.floor(min(_visible_cores(), cgroup_quota())))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(root: Path = Path("/")) -> float:
    """CPUs that a container or a scheduler allows this process by cgroups (version 2); infinite without a limit.

    Args:
        root: folder that has the kernel's ``proc`` and ``sys``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in (line for line in lines if line.startswith("0::")):
        group = root / "sys/fs/cgroup" / line.removeprefix("0::").strip("/")
        # a group above limits too, and a container may see its own group as the top one, whatever it is called
        for folder in (group, *group.parents):
            try:
                quota, period = (folder / "cpu.max").read_text().split()
            except OSError:
                continue
            quotas.append(math.inf if quota == "max" else int(quota) / int(period))
    return min(quotas)


def share_cores() -> None:
    """Let torch, which is to be loaded after this, use the cores that there are; what the user has set stays.

    Of ``NPROC`` processes, each gets its share. Where nothing limits a single process, torch chooses the number of its
    threads, as it knows which cores are real ones.
    """
    cores, processes = usable_cores(), os.environ.get("NPROC", "")
    number = int(processes) if processes.isdigit() and int(processes) else 1
    if number > 1 or cores < _visible_cores():
        os.environ.setdefault(THREADS, str(max(1, cores // number)))
    if PASSIVE not in os.environ:
        os.environ.setdefault(WAITING, str(SPINS))


def loader_processes(wanted: int) -> int:
    """``wanted`` processes that read files, but no more than this process's share of the cores."""
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(wanted, max(1, share))


def one_line(error: BaseException) -> str:
    """What ``error`` says, on one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    text = of_loader(text)
    if out_of_memory(error):
        text = f"out of memory: {text.partition('. ')[0] or 'the system has no more'}. {OUT_OF_MEMORY}"
    return " ".join(text.split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory, of the CPU or a GPU, does not suffice: torch says that of the CPU's in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    if isinstance(error, UserError):  # ours may speak of memory
        return False
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in NO_MEMORY)


def free_memory() -> float:
    """Bytes that this process can still get from the system without swapping (Linux; else infinite)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return math.inf


def say(message: str, program: str | None = None) -> None:
    """The last line of a program, on stderr; of several processes each has its own, with its rank."""
    sys.stdout.flush()
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"{program or Path(sys.argv[0]).name}: {rank}{message}", file=sys.stderr, flush=True)


def stop_signals() -> list[signal.Signals]:
    """Those that stop a training: SIGINT and what schedulers send; a hangup unless it is ignored (``nohup``)."""
    ignored = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    return [number for number in (signal.SIGINT, *SCHEDULERS) if not (ignored and number == HANGUP)]


def _stop(number: int, frame: FrameType | None) -> None:
    say(NOTHING_SAVED.format(number))
    raise SystemExit(STOPPED)


def exit_after(main: Callable[[], int | None], program: str | None = None, *, resumable: bool = False) -> NoReturn:
    """Run ``main`` and end the process: by what it returns, or with a line about what the user can mend.

    torch, which ``main`` loads, takes the cores that this process may use, see ``share_cores``.
    A scheduler's signal does not change the status any more while the interpreter ends, which takes torch a second.
    A text in ``SystemExit`` is such a line too. Other errors are bugs and keep their traceback and status 1.

    Args:
        program: its name in that line; None: the file that was started.
        resumable: a stop signal means that the same command goes on, also while ``main`` still imports its modules and
            handles no signals of its own.
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
        # Runs last, as it is registered before torch is loaded. A thread of torch that waits for the interpreter just
        # when that is taken down aborts the process: finished runs of two processes ended in SIGABRT once in some
        # hundred.
        atexit.register(leave)
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as head does
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
