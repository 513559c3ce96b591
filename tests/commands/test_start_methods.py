"""Commands that read by processes run where these are spawned (macOS) or forked from a server (Python 3.14)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As the program itself would be started, but for the start method, which is the platform's.
FORCED = (
    "import multiprocessing, runpy, sys; multiprocessing.set_start_method(sys.argv[1]); "
    "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_every_command_runs(method, command, city, source_run, tmp_path):
    workers = ["train.num_workers=2", "test.num_workers=1", "target.crop_size=null", "val.held_out=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(script: str, *options: str) -> str:
        words = [*script.split(), *command(tmp_path, "spatial", *workers), *options]
        line = [sys.executable, "-c", FORCED, method, str(ROOT / words.pop(0)), *words]
        result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, (script, result.stdout[-2000:], result.stderr[-2000:])
        return result.stdout

    start = [f"model.weights={source_run}", "curriculum.image_target=source", "source.crop_size=null"]
    assert "0 errors" in run("utils/commands/__main__.py check", "--workers", "2")
    run("train_pycda_spatial.py", *start, f"train.cache_dir={tmp_path}/cache")
    run("test_adabn.py")
    run("evaluate.py")
    run("utils/commands/predict.py", str(city / "gtav/images"), "--save", str(tmp_path / "out"))
    assert Path(run("utils/commands/__main__.py report").split()[-1]).is_file()
    assert run("utils/commands/__main__.py compare")
