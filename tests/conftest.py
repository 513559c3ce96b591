"""What the tests share.

``PYCDA_TEST_DEVICE=cuda`` runs those that take the fixture ``device``, and the processes that they start, on the GPU;
without it no test sees one, as a training would take it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataset.program import usable_cores

if "PYTEST_XDIST_WORKER" in os.environ:  # each process of the tests has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402, takes its number of threads from the environment

import train_source_only  # noqa: E402
from dataset.program import SCHEDULERS  # noqa: E402
from dataset.toy_city import Plan, write_toy_city  # noqa: E402
from tests.processes import Forked, as_two  # noqa: E402

MOST_PROCESSES = 8  # of tests: each takes about 1 GB
DEVICE = torch.device(os.environ.get("PYCDA_TEST_DEVICE", "cpu"))
if DEVICE.type == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
else:
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # float32 is compared, which by torch's default convolutions round to TF32
TINY = [
    "model.encoder=resnet10_dilated16",
    "model.fc_dim=512",
    "model.decoder=fcn",
    "source.crop_size=[64, 32]",
    "target.crop_size=[64, 32]",
    "val.held_out=3",
    "val.every=2",
    "test.input_size=null",
    "test.num_workers=0",
    "train.num_steps=2",
    "train.print_freq=1",
    "train.batch_size=2",
    "train.num_workers=0",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores, within a quota too: some tests wait for time limits and other processes."""
    return min(usable_cores() + 1, MOST_PROCESSES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, by their seconds, so that no process is left alone with one of them at the end."""
    seconds: dict[Path, float] = {}
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] = seconds.get(item.path, 0) + (mark.args[0] if mark.args else 1)
    items.sort(key=lambda item: -seconds.get(item.path, 0))


@pytest.fixture(autouse=True)
def signals_stay() -> Iterator[None]:
    """A training that was stopped keeps its handlers, as its process would end; these tests go on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *SCHEDULERS)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fork() -> Iterator[Callable[..., Forked]]:
    """``fork(SCRIPT or function, arguments, NAME=environment variable)``; the process ends with the test."""
    started = []

    def start(*arguments: Any, **variables: str) -> Forked:
        started.append(Forked(*arguments, **variables))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def fork_two(fork: Callable[..., Forked]) -> Callable[..., list[Forked]]:
    """``fork_two(SCRIPT or function, arguments of the first, of the second)``, as torchrun would start them."""
    return partial(as_two, fork)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where what is compared with the released code is computed."""
    return DEVICE


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy city of few and small pictures, in all three layouts."""
    root = tmp_path_factory.mktemp("city")
    plan = Plan(size=(96, 64), num_source=6, num_source_val=2, num_target=9, num_target_val=3, synthia=True)
    write_toy_city(root, plan)
    return root


@pytest.fixture(scope="session")
def command(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Arguments of a script for a tiny run: ``command(runs, "name", "key=value", ...)``."""
    empty = tmp_path_factory.mktemp("config") / "tiny.yaml"
    empty.write_text("num_classes: 19\n")
    data = [f"source.data_dir={city}/gtav", f"target.data_dir={city}/cityscapes"]

    def arguments(runs: Path, name: str, *keys: str) -> list[str]:
        return ["--config", str(empty), *TINY, *data, f"snapshot_dir={runs}", f"exp_name={name}", *keys]

    return arguments


@pytest.fixture(scope="session")
def source_run(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny source-only run."""
    runs = tmp_path_factory.mktemp("runs")
    train_source_only.main(command(runs, "source_only"))
    return runs / "source_only"
