"""One run at a time in a folder: by the process on this machine, by signs of life from another."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.folder import open_run_folder
from utils.run_folder.lock import LOCK, STALE, LockError, RunLock, this_process

HOLDER = """
import sys, time
from pathlib import Path
from utils.run_folder.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def write(folder: Path, silent: float = 0, **changes: object) -> None:
    """A lock file of another owner, touched ``silent`` seconds ago."""
    (folder / LOCK).write_text(json.dumps(asdict(replace(this_process(), token="other", **changes))))
    at = time.time() - silent
    os.utime(folder / LOCK, (at, at))


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    with open_run_folder(tmp_path / "run") as folder:
        folder.kept = True
        with pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()} on "):
            with open_run_folder(tmp_path / "run"):
                pass
        folder.check_lock()
    with open_run_folder(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(LockError, match=f"process {holder.pid} on"):
        RunLock(tmp_path).acquire()
    holder.kill()
    holder.communicate()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.is_ours()
    lock.release()


def test_reused_process_id_is_not_the_same_process(tmp_path):
    write(tmp_path, pid=os.getppid(), started="1")  # alive, but it began at another time
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"machine": "another container"}])
def test_other_machine_is_alive_by_its_signs_of_life(tmp_path, changes):
    write(tmp_path, **changes, pid=10**9)  # which says nothing here
    with pytest.raises(LockError, match="process 1000000000 on"):
        RunLock(tmp_path).acquire()
    write(tmp_path, **changes, silent=STALE + 5)
    RunLock(tmp_path).acquire()


def test_cut_off_lock_file_counts_as_a_start_for_a_while(tmp_path):
    (tmp_path / LOCK).write_text('{"host": ')
    with pytest.raises(LockError, match="a process that is starting"):
        RunLock(tmp_path).acquire()


def test_file_system_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    first = RunLock(tmp_path)
    first.acquire()
    assert first.is_ours()
    with pytest.raises(LockError):
        RunLock(tmp_path).acquire()


def test_run_whose_lock_was_taken_over_writes_no_more(tmp_path):
    with open_run_folder(tmp_path / "run") as folder:
        write(tmp_path / "run", host="elsewhere")
        with pytest.raises(CheckpointError, match="another run has taken the run folder over"):
            folder.check_lock()
    assert not (tmp_path / "run").exists()  # made by a start that never began
