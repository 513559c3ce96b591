"""Figures of ``tests/benchmark`` for our code only: the demo's training as a user starts it, and how cost grows."""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.program import usable_cores
from dataset.toy_city import Plan, write_toy_city
from tests.benchmark.cases import iteration_case

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = "train_source_only.py", "cfgs/demo/source_only.yaml"
CITY = Plan(num_source=40, num_source_val=1, num_target=8, num_target_val=1)
STARTS, ROUNDS = 3, 2  # timed starts; rounds of runs with one and two processes
STEPS, WARM_UP = 16, 4  # of a run; the first WARM_UP do not count
STEP = ("source.crop_size=[128, 128]", "train.channels_last=false")  # fixed, even if the demo's own step is smaller
SIDES = (96, 128, 192, 256)  # of the square crops, pixels
# Switches of time and memory: each alone, on the demo's network with pyramid pooling and a larger batch.
OPTIONS = (
    *("train.amp=off", "train.amp=bf16", "train.channels_last=true"),
    *("train.iter_size=2", "train.checkpoint_encoder=true", "train.compile=true"),
)
LARGER = ("train.amp=off", "model.decoder=ppm_bilinear", "train.batch_size=8", "source.crop_size=[256, 128]")
TIMES = re.compile(r"data ([\d.]+)s of ([\d.]+)s")


def _keys(folder: Path, name: str, steps: int) -> list[str]:
    """The demo's network on a smaller city, without validation, every step in the log."""
    write_toy_city(folder / "city", CITY)
    data = [f"source.data_dir={folder}/city/gtav", f"target.data_dir={folder}/city/cityscapes"]
    run = [f"snapshot_dir={folder}", f"exp_name={name}"]
    return [*data, *run, *STEP, "val.held_out=0", f"train.num_steps={steps}", "train.print_freq=1"]


def start(folder: Path) -> dict[str, float]:
    """Seconds from the start of Python to the end of the first step."""
    seconds = []
    for i in range(STARTS):
        command = [sys.executable, SCRIPT, "--config", CONFIG, *_keys(folder, f"start{i}", 1)]
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            next(line for line in process.stdout if TIMES.search(line))
            seconds.append(time.perf_counter() - started)
            process.communicate()
    return {"value": statistics.median(seconds)}


def _steps(folder: Path, name: str, processes: int) -> list[tuple[float, float]]:
    """(seconds of waiting for data, seconds in all) of each step of a run on all cores of this machine."""
    threads = max(1, usable_cores() // processes)
    variables = {"NPROC": str(processes), "OMP_NUM_THREADS": str(threads)}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    command = ["sh", "run.sh", SCRIPT, CONFIG, *_keys(folder, name, STEPS)]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL)
    found = TIMES.findall((folder / name / "log.txt").read_text())
    return [(float(data), float(step)) for data, step in found[WARM_UP:]]


def two_processes(folder: Path) -> dict[str, float]:
    """Step time of two processes / of one, with the same global batch and cores."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for i in range(ROUNDS):
        for processes in seconds:
            seconds[processes] += [step for _, step in _steps(folder, f"{processes}x{i}", processes)]
    one, two = (statistics.median(times) for times in seconds.values())
    return {"value": two / one, "one_s": one, "two_s": two}


def data_share(folder: Path) -> dict[str, float]:
    """Share of the steps' time, in percent, that is spent waiting for data."""
    data, step = np.sum(_steps(folder, "data", 1), axis=0)
    return {"value": 100 * float(data / step)}


def exponent(sides: Sequence[int] = SIDES) -> dict[str, float]:
    """Slope of log(time of a PyCDA iteration) over log(pixels), by least squares."""
    cases = [iteration_case(False, (side, side), encoder="resnet18_dilated8") for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(1 + cases[0].repeats):
        for case, times in zip(cases, seconds, strict=True):
            started = time.perf_counter()
            case.ours()
            if turn:  # the first one allocates
                times.append(time.perf_counter() - started)
    medians = [statistics.median(times) for times in seconds]
    slope, _ = np.polyfit(np.log([side**2 for side in sides]), np.log(medians), 1)
    return {"value": float(slope)} | {f"{side}_ms": 1000 * m for side, m in zip(sides, medians, strict=True)}


def options(folder: Path, skip: Sequence[str]) -> dict[str, tuple[float, float]]:
    """By switch: median time of a source step in s, and the process's peak memory in MiB.

    Args:
        skip: switches that contain one of these words are skipped.
    """
    found = {}
    for i, option in enumerate(option for option in OPTIONS if not any(word in option for word in skip)):
        command = [sys.executable, SCRIPT, "--config", CONFIG, *_keys(folder, f"option{i}", STEPS), *LARGER, option]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # The usage of only this process; communicate() would lose it.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}")
        steps = TIMES.findall((folder / f"option{i}" / "log.txt").read_text())[WARM_UP:]
        found[option] = statistics.median(float(step) for _, step in steps), usage.ru_maxrss / 1024
    return found
