"""One run at a time in a folder: a process of this machine is checked; for other machines the user gets advice."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.folder import LOCK, open_run_folder

HOLDER = """
import sys, time
from pathlib import Path
from utils.run_folder.folder import open_run_folder
with open_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start(folder: Path) -> None:
    """A run that does nothing."""
    with open_run_folder(folder):
        pass


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    with open_run_folder(tmp_path / "run"):
        (tmp_path / "run/config.yaml").touch()  # the run has begun
        with pytest.raises(CheckpointError, match=rf"another run \(process {os.getpid()} on "):
            start(tmp_path / "run")
    start(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_refused_start_leaves_the_folder_of_a_faster_run(tmp_path, monkeypatch):
    """Both made the folder, and the other one locked it first."""
    mkdir = Path.mkdir

    def overtaken(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)
        if path == tmp_path / "run":
            monkeypatch.setattr(Path, "mkdir", mkdir)
            faster.enter_context(open_run_folder(path))

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with ExitStack() as faster:
        with pytest.raises(CheckpointError, match="another run"):
            start(tmp_path / "run")
        assert (tmp_path / "run" / LOCK).is_file()


def test_a_folder_that_cannot_be_made_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="name too long. Make it writable or choose another snapshot_dir"):
        start(tmp_path / "new" / ("x" * 300))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_lock_of_a_killed_process_is_taken_at_once(tmp_path):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(CheckpointError, match=f"process {holder.pid} on"):
        start(tmp_path)
    holder.kill()
    holder.communicate()
    with open_run_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def held(folder: Path, **changes: object) -> Path:
    """A lock file like that of this process, with ``changes``."""
    with open_run_folder(folder):
        content = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(content | changes))
    return folder / LOCK


def test_reused_process_id_is_not_the_same_process(tmp_path):
    held(tmp_path, pid=os.getppid(), started="1")  # alive, but started at another time
    start(tmp_path)


def test_lock_of_another_machine_says_what_to_delete(tmp_path):
    path = held(tmp_path, host="elsewhere", pid=10**9)
    with pytest.raises(CheckpointError, match=f"process 1000000000 on elsewhere.*has ended, delete {path}"):
        start(tmp_path)
    path.unlink()
    start(tmp_path)


@pytest.mark.parametrize("text", ["", '{"host": ', "[]", '{"host": "here"}'])
def test_lock_file_without_an_owner_says_what_to_delete(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(CheckpointError, match="delete that file if no run is active"):
        start(tmp_path)


def test_the_lock_of_another_run_is_left_alone(tmp_path):
    """The user deleted the lock file and started another run while this run continued."""
    with open_run_folder(tmp_path):
        content = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).write_text(json.dumps(content | {"since": "later"}))
    assert (tmp_path / LOCK).exists()
