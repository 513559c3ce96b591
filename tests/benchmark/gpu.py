"""``sh run.sh benchmark --gpu``: all measurements that need a GPU, in one run.

The golden tests on the device; two processes on one GPU compared with one; then one iteration of each recipe at its
real sizes, on a batch in memory: time, peak memory, images per second, and how often the host waits for the device.
The released way is measured too. Each row is measured in its own process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.messages import UserError
from tests.benchmark.cases import plain_curriculum
from tests.benchmark.in_memory import RECIPES, trainer
from utils.engine.losses import on_device
from utils.engine.trainer import Trainer

ROOT = Path(__file__).parents[2]
RELEASED = "released way"
VARIANTS: dict[str, tuple[str, ...]] = {  # float32 with torch's default: convolutions may round to TF32
    RELEASED: (),
    "float32": (),
    "bf16": ("train.amp=bf16",),
    "channels_last": ("train.channels_last=true",),
    "bf16, channels_last": ("train.amp=bf16", "train.channels_last=true"),
    "compile": ("train.compile=true",),
}
STILL = ("train.lr_encoder=0", "train.lr_decoder=0")  # a whole step that does not change the weights
TESTS = {  # title: arguments of pytest
    "golden tests": (
        *("tests/method/test_curriculum.py", "tests/method/test_trajectory.py", "tests/models/test_models.py"),
        *("-k", "released_code or released_scripts"),
    ),
    "two processes on one GPU": ("tests/training/test_distributed.py", "-k", "train_as_one or same_counts"),
}
WARM_UP, REPEATS = 3, 10  # iterations
GIB = 2**30
Row = dict[str, float]


def released_iteration(run: Trainer) -> Callable[[], None]:
    """An iteration of ``run`` in the released way: all outputs, boolean indexing, every loss read at once."""
    batches = [on_device(next(iter(phase.loader)), run.device) for phase in run.phases]
    c, prior = run.config.curriculum, None
    if c.lambda_eq:
        prior = torch.ones(run.config.num_classes, *batches[1]["label"].shape[1:], device=run.device)

    def update(loss: Tensor) -> None:
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        loss.item()

    def iteration() -> None:
        outputs = run.model(batches[0]["image"])
        main, aux = (F.cross_entropy(outputs[name], batches[0]["label"]) for name in ("logits", "aux"))
        update(main + run.config.train.lambda_seg * aux)
        for phase, batch in zip(run.phases[1:], batches[1:], strict=True):
            logits = run.model(batch["image"])["logits"]
            if phase.backward:
                update(plain_curriculum(logits, batch["valid"], prior, c.box_size))

    return iteration


def measure(script: str, variant: str, device: torch.device, keys: Sequence[str] = (), repeats: int = REPEATS) -> Row:
    """Medians of one row; memory and waits are 0 if ``device`` is no GPU."""
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(script, [*STILL, *VARIANTS[variant], *keys], device, Path(folder))
    work = released_iteration(run) if variant == RELEASED else run.step
    for _ in range(WARM_UP if cuda else 0):
        work()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
    images = len(run.phases) * run.config.train.batch_size
    return {"ms": 1000 * median, "images": images / median, "gib": peak, "waits": waits(work) if cuda else 0}


def waits(work: Callable[[], object]) -> int:
    """How often ``work`` makes the host wait for the GPU, counted by torch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def run_tests(arguments: Sequence[str], device: torch.device) -> tuple[bool, str]:
    """Whether the tests passed on ``device``, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # two processes must share it
    variables = os.environ | {"PYCDA_TEST_DEVICE": str(device), "CUDA_VISIBLE_DEVICES": first}
    found = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(found.stdout, flush=True)
    return found.returncode == 0, found.stdout.strip().rpartition("\n")[2]


def line(script: str, variant: str, found: Row | str) -> str:
    """A row of the table; ``found`` is a text if there are no numbers."""
    if isinstance(found, str):
        return f"| `{script}` | {variant} | {found} | | | |"
    figures = f"{found['ms']:.1f} | {found['images']:.1f} | {found['gib']:.2f} | {found['waits']:.0f}"
    return f"| `{script}` | {variant} | {figures} |"


def measured_apart(script: str, variant: str, device: torch.device) -> Row | str:
    """``measure`` in its own process; after an error, such as out of memory, the last line of it."""
    command = [sys.executable, "-m", "tests.benchmark.gpu", script, variant, str(device)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (found.stdout if found.returncode == 0 else found.stderr).strip().rpartition("\n")[2]
    return json.loads(last) if found.returncode == 0 else last


def main(out: Path) -> None:
    """Run all and print the tables, also to ``out``/gpu.md. Raises UserError without a GPU."""
    if not torch.cuda.is_available():
        raise UserError("not run: torch sees no GPU here (torch.cuda.is_available() is False)")
    device = torch.device("cuda", 0)
    lines = ["| tests | passed | pytest |", "|---|---|---|"]
    for title, arguments in TESTS.items():
        passed, summary = run_tests(arguments, torch.device("cuda"))
        lines.append(f"| {title} | {'yes' if passed else '**no**'} | {summary} |")
    lines += ["", "| recipe | way | ms | images per second | peak memory, GiB | waits |", "|---" * 6 + "|"]
    for script in RECIPES:
        for variant in VARIANTS:
            lines.append(line(script, variant, measured_apart(script, variant, device)))
            print(lines[-1], flush=True)
    text = "\n".join([*lines, "", f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", ""])
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(text)
    print(f"{text}written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="one row, as JSON")
    for name in ("script", "variant", "device"):
        parser.add_argument(name)
    args = parser.parse_args()
    print(json.dumps(measure(args.script, args.variant, torch.device(args.device))))
