"""``run.sh`` without training: the command that it would start, printed by ``echo`` instead of Python."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def started(*arguments: str, **variables: str) -> str:
    """The arguments that ``run.sh`` gives to the interpreter."""
    set_by_clusters = ("SLURM_", "NNODES", "NODE_RANK", "NPROC", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(set_by_clusters)}
    environment = kept | {"PYTHON": "echo", "CUDA_VISIBLE_DEVICES": ""} | variables
    command = ["sh", str(ROOT / "run.sh"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def fake_python(folder: Path, gpus: int) -> str:
    """An interpreter that answers ``gpus`` to the count of GPUs, and otherwise prints its arguments."""
    path = folder / f"python{gpus}"
    path.write_text(f'#!/bin/sh\ncase $1 in -c) echo {gpus} ;; *) echo "$@" "NPROC=${{NPROC:-}}" ;; esac\n')
    path.chmod(0o755)
    return str(path)


def test_one_process_without_gpus_and_one_for_each_visible_gpu(tmp_path):
    script, launcher = str(ROOT / "train_pycda.py"), "-P -m utils.launch 5"
    assert started("train_pycda.py", "c.yaml", "seed=1") == f"{script} c.yaml seed=1"
    visible = {"CUDA_VISIBLE_DEVICES": "0,2,3", "PYTHON": fake_python(tmp_path, 3)}
    many = started("train_pycda.py", "c.yaml", "seed=1", **visible)
    assert many == f"{launcher} {script} c.yaml seed=1 NPROC=3"
    assert started("train_pycda.py", "c.yaml", **visible, NPROC="2").endswith("NPROC=2")
    assert started("predict", "c.yaml", **visible).endswith(f"{ROOT}/utils/commands/predict.py c.yaml NPROC=3")
    for gpus in (0, 1):  # an old driver, or torch for the CPU
        visible["PYTHON"] = fake_python(tmp_path, gpus)
        assert started("train_pycda.py", "c.yaml", **visible) == f"{script} c.yaml NPROC="
    visible["MAX_RESTARTS"] = "2"
    assert started("train_pycda.py", "c.yaml", **visible) == f"{launcher} {script} c.yaml NPROC=1"


def test_gpus_that_the_driver_lists_are_counted_by_torch(tmp_path):
    listing = tmp_path / "nvidia-smi"
    listing.write_text('#!/bin/sh\nprintf "GPU 0: A\\nGPU 1: B\\n"\n')
    listing.chmod(0o755)
    run = ["sh", str(ROOT / "run.sh"), "evaluate.py", "c.yaml"]
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "NPROC")}
    for gpus, expected in ((2, "NPROC=2"), (0, f"{ROOT / 'evaluate.py'} c.yaml")):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": fake_python(tmp_path, gpus)}
        assert expected in subprocess.run(run, env=kept | own, capture_output=True, text=True, check=True).stdout


def test_names_without_their_endings_and_questions_to_one_process():
    for name in ("train_pycda", "train_pycda.py"):
        assert started(name, "c") == f"{ROOT / 'train_pycda.py'} c"
    for question in ("--help", "--print-config"):
        assert started("evaluate", "c.yaml", question, NPROC="2") == f"{ROOT / 'evaluate.py'} c.yaml {question}"
    assert started("evaluate", NPROC="2") == str(ROOT / "evaluate.py")
    assert started("help") == started("--help") and "sh run.sh SCRIPT CONFIG" in started("help")
    assert started("check", "--help") == "-P -m utils.commands check --help"


def test_several_nodes_by_variables_or_by_slurm(tmp_path):
    saying = tmp_path / "python"
    saying.write_text(
        '#!/bin/sh\ncase "$*" in *--print-config) echo "timeout_minutes: $PATIENCE" ;;\n'
        '*) echo "$@" $NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $NPROC ;; esac\n'
    )
    saying.chmod(0o755)
    usual = {"NPROC": "4", "PYTHON": str(saying), "PATIENCE": "7.5"}
    given = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29501"}
    expected = f"-P -m utils.launch 7.5 {ROOT}/train_pycda.py c.yaml 2 1 node7 29501 4"
    assert started("train_pycda.py", "c.yaml", **given, **usual) == expected
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "9501", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]"}
    usual["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert started("train_pycda.py", "c.yaml", **slurm, **usual) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "sh run.sh SCRIPT CONFIG"), (["train_pycda.py", "c.yaml"], "set NODE_RANK")],
)
def test_missing_arguments_are_named(arguments, message):
    environment = os.environ | {"NNODES": "2", "MASTER_ADDR": "node7"}
    command = ["sh", str(ROOT / "run.sh"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and message in result.stderr
