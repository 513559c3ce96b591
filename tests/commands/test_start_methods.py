"""Commands that read by processes run where these are spawned (macOS) or forked from a server (Python 3.14)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# All commands in one process, which imports torch once; the start method is the platform's.
FORCED = """
import json, multiprocessing, sys
from importlib import import_module

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    for module, arguments in json.loads(sys.argv[2]):
        print("==", module, flush=True)
        status = import_module(module).main(arguments)
        assert not status, (module, status)
"""
TRAINING = "train_pycda_spatial"


@pytest.mark.slow(27)  # seconds
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_every_command_runs(method, command, city, source_run, tmp_path):
    usual = command(
        tmp_path, "spatial", "train.num_workers=1", "test.num_workers=1", "target.crop_size=null", "val.held_out=0"
    )
    start = [f"model.weights={source_run}", "curriculum.image_target=source", "source.crop_size=null"]
    lines = [
        ("utils.commands.check", [*usual, "--workers", "2"]),
        (TRAINING, [*usual, *start, f"train.cache_dir={tmp_path}/cache"]),
    ]
    if method == "spawn":
        lines += [
            ("test_adabn", usual),
            ("evaluate", usual),
            ("utils.commands.predict", [*usual, str(city / "gtav/images"), "--save", str(tmp_path / "out")]),
            ("utils.commands.report", usual),
        ]
    (tmp_path / "forced.py").write_text(FORCED)
    program = [sys.executable, str(tmp_path / "forced.py"), method, json.dumps(lines)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, (result.stdout[-2000:], result.stderr[-2000:])
    assert result.stdout.count("== ") >= len(lines) and "0 errors" in result.stdout
    assert (tmp_path / "spatial/last.pth").is_file()
    assert (tmp_path / "spatial/report.html").is_file() == (method == "spawn")
