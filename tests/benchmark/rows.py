"""The rows of the benchmark, their measurement, and the tables."""

import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset.messages import UserError
from dataset.program import usable_cores
from tests.benchmark import recipes, runs
from tests.benchmark.cases import (
    Case,
    curriculum_case,
    decode_case,
    evaluation_case,
    iteration_case,
    lookup_case,
    prior_case,
    sample_case,
)
from utils.engine.start import half_precision_time
from utils.scoring.upsampling import DIRECT, RELEASED

Result = dict[str, float | bool]
GTAV, CITY = ((1914, 1052), (1024, 560), (560, 480)), ((2048, 1024), (1024, 512), (560, 480))
SMALL, LARGE = ((128, 128), 4, "resnet18_dilated8"), (560, 480)  # iterations: crop, batch, encoder; the released crop
# name -> (goal for time, theirs / ours; goal for memory, ours / theirs; function that builds the case)
CASES: dict[str, tuple[float | None, float | None, Callable[[Path], Case]]] = {
    "curriculum 2x19x480x560": (2.5, 0.5, lambda folder: curriculum_case((2, 480, 560), False)),
    "curriculum + spatial 2x19x512x1024": (2.5, 0.5, lambda folder: curriculum_case((2, 512, 1024), True)),
    "GTAV sample": (1.5, None, lambda folder: sample_case(folder, *GTAV)),
    "GTAV sample against bare decode": (1 / 1.2, None, lambda folder: decode_case(folder, *GTAV)),
    "GTAV sample, cache_dir": (5, None, lambda folder: sample_case(folder, *GTAV, cached=True)),
    "Cityscapes sample": (1.5, None, lambda folder: sample_case(folder, *CITY)),
    "Cityscapes sample against bare decode": (1 / 1.2, None, lambda folder: decode_case(folder, *CITY)),
    "Cityscapes sample, cache_dir": (5, None, lambda folder: sample_case(folder, *CITY, cached=True)),
    "evaluation after the forward pass": (10, 0.1, lambda folder: evaluation_case(RELEASED)),
    "the same, test.upsampling=direct": (10, 0.1, lambda folder: evaluation_case(DIRECT)),
    "label look-up 1052x1914": (10, None, lambda folder: lookup_case()),
    "class histogram + spatial prior, 200 files": (4, None, prior_case),
    # no goal for time in float32: both ways compute the same convolutions
    "PyCDA iteration, resnet18, 4+4 of 128x128": (None, 0.7, lambda folder: iteration_case(False, *SMALL)),
    "the same, bf16": (1.9, 0.7, lambda folder: iteration_case(True, *SMALL)),
    "PyCDA iteration, resnet101, 2+2 of 560x480": (None, 0.7, lambda folder: iteration_case(False, LARGE)),
    "the same, resnet101, bf16": (1.9, 0.7, lambda folder: iteration_case(True, LARGE)),
    "the same, resnet101, checkpoint_encoder": (None, 0.7, lambda _: iteration_case(False, LARGE, recompute=True)),
    "the same, resnet101, bf16, checkpoint_encoder": (None, 0.7, lambda _: iteration_case(True, LARGE, recompute=True)),
}
# name -> (upper limit, function that measures)
RUNS: dict[str, tuple[float, Callable[[Path], Result]]] = {
    "start of training to the end of the first step, demo, s": (3, runs.start),
    "step of 2 processes / of 1, same batch and cores, demo": (1.25, runs.two_processes),
    "waiting for data, demo, % of the step": (5, runs.data_share),
    "exponent of iteration time against pixels, 4 crop sizes": (1.1, lambda folder: runs.exponent()),
}
HALF = "bf16"  # in the names of the rows in half precision
SWITCHES = "switches"  # the table of train.amp, train.iter_size, ...
BOUND = 60  # percent of the machine's rate of matrix products that an iteration must reach
SQUARE = 2048  # side of the matrices that measure this rate


def peak_extra(work: Callable) -> float:
    """MiB that ``work`` needs at its peak, above the memory in use before (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(name: str, folder: Path) -> Result:
    """Medians of one case, measured in turns, and both peaks; rates of arithmetic if the case has a ``dtype``."""
    case = CASES[name][2](folder)
    same = bool(case.same(case.ours(), case.theirs()))
    sides = {"ours": case.ours, "theirs": case.theirs}
    if case.dtype is not None:
        sides["product"] = product(case.dtype)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(case.repeats):
        for side, work in sides.items():
            started = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - started)
    seconds = {side: statistics.median(t) for side, t in times.items()}
    result = {"same": same} | {f"{side}_ms": 1000 * s for side, s in seconds.items()}
    if case.dtype is not None:
        result["gflops"] = flops(case.ours) / seconds["ours"] / 1e9
        result["product_gflops"] = 2 * SQUARE**3 / seconds["product"] / 1e9
    return result | {f"{side}_mib": peak_extra(sides[side]) for side in ("ours", "theirs")}


def product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product of square matrices as a 1x1 convolution, so by the same library as our convolutions.

    On an AMD processor ``torch.mm`` uses another library, with half the rate in float32.
    """
    images = torch.randn(1, SQUARE, SQUARE // 32, 32).to(dtype=dtype, memory_format=torch.channels_last)
    return partial(torch.conv2d, images, torch.randn(SQUARE, SQUARE, 1, 1).to(dtype))


def flops(work: Callable) -> int:
    """Multiplications and additions of the convolutions and matrix products in ``work``, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def row(name: str, result: Result) -> str:
    ratio, memory_goal, _ = CASES[name]
    speed, memory = result["theirs_ms"] / result["ours_ms"], result["ours_mib"] / max(result["theirs_mib"], 1)
    reached = result["same"] and (ratio is None or speed >= ratio) and (memory_goal is None or memory <= memory_goal)
    times = (f"{result['theirs_ms']:.1f}", f"{result['ours_ms']:.1f}")
    goals = ("-" if ratio is None else f"{ratio:.2f}x", "-" if memory_goal is None else f"{memory_goal:.1f}")
    return _line(name, *times, f"{speed:.2f}x", goals[0], f"{memory:.2f}", goals[1], reached)


def bound_row(name: str, result: Result) -> str:
    share = 100 * result["gflops"] / result["product_gflops"]
    what = f"{name}: {result['gflops']:.0f} GFLOP/s, % of a matrix product's {result['product_gflops']:.0f}"
    return _line(what, f"{share:.0f}", f">= {BOUND}", share >= BOUND)


def run_row(name: str, result: Result) -> str:
    limit = RUNS[name][0]
    return _line(name, f"{result['value']:.2f}", f"<= {limit}", result["value"] <= limit)


def half_precision_row(ratio: float) -> str:
    """Whether bf16 is faster on this CPU; ``ratio``: time of a convolution in bf16 / in float32."""
    verdict = f"{ratio:.1f} times slower" if ratio > 1 else f"{1 / ratio:.1f} times faster"
    return f"| bf16 on this CPU, a convolution beside float32 | {verdict} | - | - |"


def _line(*cells: str | bool) -> str:
    return f"| {' | '.join([*cells[:-1], 'yes' if cells[-1] else '**no**'])} |"


def table(results: dict[str, Result]) -> str:
    """Markdown: ours beside theirs, then the limits for ours."""
    lines = ["| what | theirs, ms | ours, ms | speed | to reach | memory, ours / theirs | to reach | reached |"]
    lines += ["|---" * 8 + "|"]
    lines += [row(name, result) for name, result in results.items() if name in CASES]
    lines += ["", "| what | measured | to reach | reached |", "|---" * 4 + "|"]
    lines += [bound_row(name, result) for name, result in results.items() if "gflops" in result]
    return "\n".join(lines + [run_row(name, result) for name, result in results.items() if name in RUNS])


def switch_table(found: dict[str, tuple[float, float]]) -> str:
    """Markdown: time and memory of a source step with each switch."""
    lines = ["| switch | source step, s | peak memory of the process, MiB |", "|---" * 3 + "|"]
    lines += [f"| `{option}` | {seconds:.2f} | {mib:.0f} |" for option, (seconds, mib) in found.items()]
    return "\n".join(lines)


def measure_one(name: str) -> None:
    """Print one row's figures as JSON, in the last line. Raises UserError for an unknown row."""
    if name not in CASES and name not in RUNS:
        raise UserError(f"command line: --case {name!r} is no row, choose from: {'; '.join((*CASES, *RUNS))}")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(name, Path(folder)) if name in CASES else RUNS[name][1](Path(folder))
    print(json.dumps(found))


def measure_all(out: Path, skip: Sequence[str]) -> None:
    """Measure every row in its own process; print the tables, also to ``out``. Skip bf16 if it is slow here."""
    results: dict[str, Any] = {}
    ratio = half_precision_time(torch.bfloat16)
    skip = [*skip, HALF] if ratio > 1 else skip
    for name in (name for name in (*CASES, *RUNS) if not any(word in name for word in skip)):
        command = [sys.executable, "-m", "tests.benchmark", "--case", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
        print(row(name, results[name]) if name in CASES else run_row(name, results[name]), flush=True)
    machine = f"{platform.machine()}, {usable_cores()} cores, torch {torch.__version__}"
    out.mkdir(parents=True, exist_ok=True)
    text = f"{table(results)}\n{half_precision_row(ratio)}\n\n"
    if SWITCHES not in skip:
        with tempfile.TemporaryDirectory() as folder:
            results[SWITCHES] = runs.options(Path(folder), skip)
        text += f"{switch_table(results[SWITCHES])}\n\n"
    text += f"{recipes.table()}\n\n{machine}\n"
    (out / "benchmark.md").write_text(text)
    (out / "benchmark.json").write_text(json.dumps({"machine": machine, "results": results}, indent=2))
    print(f"{text}written to {out}")
