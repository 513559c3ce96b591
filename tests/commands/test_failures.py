"""A mistake of the user gives one line and status 2 at once; a bug keeps its traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import train_source_only
from dataset import program
from dataset.folders import DataError
from dataset.messages import UserError
from models.weights import WeightsError
from utils.config.schema import ConfigError
from utils.run_folder.checkpoint import CheckpointError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
COMMANDS = [["-m", "utils.commands", name] for name in ("demo", "check", "report")]


def ended(main, capsys: pytest.CaptureFixture[str]) -> tuple[int | None, str]:
    """Status and error output of a program with this ``main``."""
    with pytest.raises(SystemExit) as stopped:
        program.exit_after(main, "program")
    return stopped.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def python(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError, WeightsError, CheckpointError, FloatingPointError])
def test_expected_error_is_one_line(kind, capsys, monkeypatch):
    assert ended(raising(kind("some.yaml: key 'x'\n  is wrong")), capsys) == (
        2,
        "program: error: some.yaml: key 'x' is wrong\n",
    )
    monkeypatch.setenv("PYCDA_TRACEBACK", "1")
    with pytest.raises(kind):
        program.exit_after(raising(kind("x")))


def test_other_endings(capsys, monkeypatch):
    def absent() -> None:
        open("/nowhere/file")

    assert ended(absent, capsys) == (2, "program: error: /nowhere/file: No such file or directory\n")
    assert ended(raising(SystemExit("so it is")), capsys) == (2, "program: error: so it is\n")
    assert ended(raising(SystemExit(75)), capsys) == (75, "")
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "program: interrupted\n")
    assert ended(lambda: None, capsys) == (None, "") and ended(lambda: 1, capsys) == (1, "")
    status, text = ended(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")), capsys)
    assert status == 2 and "train.batch_size" in text and text.count("\n") == 1
    for bug in (KeyError("x"), ValueError("x"), RuntimeError("x")):
        with pytest.raises(type(bug)):
            program.exit_after(raising(bug))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert ended(raising(DataError("no image")), capsys) == (2, "program: rank 1: error: no image\n")


class Unreadable(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise DataError("a.png is damaged: remove it")


def test_error_in_a_loader_process_is_one_line(capsys):
    def main() -> None:
        list(torch.utils.data.DataLoader(Unreadable(), num_workers=1))

    assert ended(main, capsys) == (2, "program: error: a.png is damaged: remove it\n")


@pytest.mark.slow
@pytest.mark.parametrize("program", [[name] for name in SCRIPTS] + COMMANDS, ids=" ".join)
def test_questions_and_mistakes_are_answered_without_torch(program, tmp_path):
    """torch takes seconds to import, so here importing it is an error."""
    hook = "import sys\nsys.modules['torch'] = sys.modules['scipy'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    answer = python(*program, "--help", **path)
    assert answer.returncode == 0 and "usage:" in answer.stdout, answer.stderr
    mistakes = {"pycda_exp001 train.batch_size=0": "'train.batch_size' must be int, at least 1, got '0'"}
    if program[-1] == "demo":
        mistakes = {"--sed=1": "--help", "seed": "'seed' is not key=value"}
    elif program == ["train_pycda.py"]:  # the others read their arguments in the same way
        answer = python(*program, "pycda_exp001", "--print-config", **path)
        assert answer.returncode == 0 and "conf_threshold: 0.5" in answer.stdout, answer.stderr
        mistakes |= {"pycda_exp01": "cfgs/pycda_exp001.yaml", "--confg=x": "--help"}
    for arguments, message in mistakes.items():
        wrong = python(*program, *arguments.split(), **path)
        assert wrong.returncode == 2 and message in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr


VARIABLES = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_sh(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "run.sh"), *arguments]
    environment = os.environ | VARIABLES | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)


def test_wrong_key_of_several_processes_is_reported_once_before_they_start(tmp_path):
    wrong = run_sh("train_source_only", "source_only_exp001", "seed=-1", folder=tmp_path, NPROC="2")
    message = "train_source_only.py: error: command line: key 'seed' must be int, at least 0, got '-1'\n"
    assert (wrong.returncode, wrong.stderr) == (2, message)


@pytest.mark.slow
def test_another_folder(command, tmp_path, monkeypatch):
    """Paths are relative to the working directory; files there with our names have no effect."""
    _, config, *keys = command(Path("runs"), "run", "train.num_steps=1", "val.held_out=0")
    (tmp_path / "my.yaml").write_text(Path(config).read_text() + "seed: 123\n")
    for name in ("utils.py", "dataset.py", "models.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    for name in ("train_source_only", "check"):
        answer = run_sh(name, "my", *keys, "--print-config", folder=tmp_path)
        assert answer.returncode == 0 and "seed: 123" in answer.stdout, answer.stderr
    monkeypatch.chdir(tmp_path)
    train_source_only.main(["my", *keys])
    assert (tmp_path / "runs/run/last.pth").is_file()
    evaluate.main(["my.yaml", "--weights", "runs/run", *keys, "--json", "s.json"])
    assert json.loads((tmp_path / "s.json").read_text())["name"] == "runs/run"
