"""Threads and loader processes follow the limits of a container, a scheduler or the user."""

import math
import os
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from dataset import program
from dataset.loader import eval_loader
from dataset.program import cgroup_quota, loader_processes, share_cores, usable_cores

TREES = {  # name -> files of /proc and /sys, CPUs that they allow
    "no cgroups": ({}, math.inf),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
    "version 2": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
    "version 2, a group above": (
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
        },
        3,
    ),
}


@pytest.mark.parametrize(("files", "expected"), TREES.values(), ids=list(TREES))
def test_quota_of_a_container(files, expected, tmp_path):
    for name, text in files.items():
        path: Path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cgroup_quota(tmp_path) == expected


@pytest.fixture
def four_cores_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with a quota on a large host, without any setting by the user."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(program, "cgroup_quota", lambda: 4.5)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "NPROC", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # is restored after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("processes", "threads"), [(None, "4"), ("1", "4"), ("2", "2"), ("8", "1")])
def test_threads_are_a_process_share_of_the_quota(four_cores_of_64, monkeypatch, processes, threads):
    if processes:
        monkeypatch.setenv("NPROC", processes)
    share_cores()
    assert usable_cores() == 4 and os.environ["OMP_NUM_THREADS"] == threads
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


def test_settings_of_the_user_stay(four_cores_of_64, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "7" and "GOMP_SPINCOUNT" not in os.environ


class Nothing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return index


def test_no_more_loader_processes_than_cores(four_cores_of_64, monkeypatch, recwarn):
    assert [loader_processes(wanted) for wanted in (0, 2, 100)] == [0, 2, 4]
    assert eval_loader(Nothing(), num_workers=100).num_workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [loader_processes(wanted) for wanted in (0, 1, 100)] == [0, 1, 2]
    assert not recwarn.list
