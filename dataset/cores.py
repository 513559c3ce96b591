"""How many cores this process may use, and how many threads and loader processes follow from it."""

import math
import os
from pathlib import Path

THREADS, WAITING, PASSIVE = "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"  # environment variables of OpenMP
# Turns that a waiting thread spins before it gives its core away, less than a millisecond. A step of the demo takes
# 0.18 s by OpenMP's own default, and 6.3 s beside two busy processes; with this 0.18 and 1.6 s.
SPINS = 20_000


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask (Linux; else all), within its cgroups' quota."""
    return max(1, math.floor(min(_visible_cores(), cgroup_quota())))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(root: Path = Path("/")) -> float:
    """CPUs that a container or a scheduler allows this process by cgroups, version 1 or 2; infinite without a limit.

    Args:
        root: folder that has the kernel's ``proc`` and ``sys``.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = base / path.strip("/")
        # a group above limits too, and a container may see its own group as the top one, whatever it is called
        for folder in (group, *group.parents):
            quotas.append(_quota_of(folder))
            if folder == base:
                break
    return min(quotas)


def _quota_of(group: Path) -> float:
    """CPUs that one cgroup allows by its files, of either version."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


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
