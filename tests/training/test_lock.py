"""One run at a time in a folder: a process of this machine is asked, for another one's the user is told what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.folder import open_run_folder
from utils.run_folder.lock import LOCK, LockError, RunLock

HOLDER = """
import sys, time
from pathlib import Path
from utils.run_folder.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    with open_run_folder(tmp_path / "run") as folder:
        folder.kept = True
        with pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()} on "):
            with open_run_folder(tmp_path / "run"):
                pass
    with open_run_folder(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_lock_of_a_killed_process_is_taken_at_once(tmp_path):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(LockError, match=f"process {holder.pid} on"):
        RunLock(tmp_path).acquire()
    holder.kill()
    holder.communicate()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    lock.release()
    assert not list(tmp_path.iterdir())


def held(folder: Path, **changes: object) -> Path:
    """A lock file as this process would write it, but for ``changes``."""
    RunLock(folder).acquire()
    path = folder / LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_reused_process_id_is_not_the_same_process(tmp_path):
    held(tmp_path, pid=os.getppid(), started="1")  # alive, but it began at another time
    RunLock(tmp_path).acquire()


def test_lock_of_another_machine_says_what_to_delete(tmp_path):
    path = held(tmp_path, host="elsewhere", pid=10**9)
    with pytest.raises(LockError, match=f"process 1000000000 on elsewhere.*has ended, delete {path}"):
        RunLock(tmp_path).acquire()
    path.unlink()
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("text", ["", '{"host": ', "[]", '{"host": "here"}'])
def test_lock_file_that_names_nobody_says_what_to_delete(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(LockError, match="delete that file if no run is going on"):
        RunLock(tmp_path).acquire()


def test_the_lock_of_another_run_is_left_alone(tmp_path):
    """As where somebody deleted the file, and started again, while this run was going on."""
    first = RunLock(tmp_path)
    first.acquire()
    first.path.unlink()
    path = held(tmp_path, since="later")
    first.release()
    assert path.exists()
