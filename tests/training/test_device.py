"""One iteration of every recipe on a pretended device: finds mistakes that only a GPU shows."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dataset.messages import UserError
from models.batchnorm import bn_updates
from tests.benchmark import gpu
from tests.benchmark.in_memory import RECIPES, trainer
from tests.training.pretended import DEVICE, OnDevice, PretendedDevice
from utils import distributed
from utils.engine.trainer import learning_rate_factor

pytestmark = pytest.mark.slow

SMALL = [
    *("model.encoder=resnet10_dilated16", "model.decoder=fcn", "model.fc_dim=512", "model.dropout=0.0"),
    *("source.input_size=[64, 64]", "target.input_size=[64, 64]", "source.crop_size=null", "target.crop_size=null"),
    *("source.scale=null", "target.scale=null", "train.batch_size=2", "curriculum.conf_threshold=0.16"),
]
PAPER = [
    *("curriculum.image_target=source", "curriculum.image_loss=ce", "curriculum.region_pool=probs"),
    *("curriculum.merge_1x1=true", "curriculum.drop_saturated=false"),
]
VARIANTS = {"paper": PAPER, "in parts": ["train.iter_size=2", "train.batch_size=4"]}  # of PyCDA
CASES = [(script, []) for script in RECIPES] + [("train_pycda", keys) for keys in VARIANTS.values()]


@pytest.mark.parametrize(("script", "keys"), CASES, ids=[*RECIPES, *VARIANTS])
def test_iteration_mixes_no_devices_and_waits_once(script, keys, tmp_path, monkeypatch):
    """The device gives the same values as the CPU."""
    expected = trainer(script, [*SMALL, *keys], torch.device("cpu"), tmp_path).step().values
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # autocast does not support this device
    with PretendedDevice() as device:
        run = trainer(script, [*SMALL, *keys], DEVICE, tmp_path)
        device.waits.clear()  # waits of moving the network to the device
        found = run.step().values
        assert len(device.waits) == 1, device.waits
        assert all(isinstance(tensor, OnDevice) for tensor in run.model.state_dict().values())
    assert found.keys() == expected.keys() and "source/total" in found
    for name, value in found.items():
        of_labels = isinstance(value, dict) or "/labelled/" in name  # may differ by one pixel
        assert value == pytest.approx(expected[name], abs=2e-3 if of_labels else 0, rel=1e-4), name


SEEN: dict[str, Callable[[Tensor], object]] = {
    "number": lambda x: x.sum().item(),
    "copy to the host": lambda x: x.cpu(),
    "copy that blocks": lambda x: torch.ones(3).to(DEVICE),
    "mask": lambda x: x[x > 1],
    "index on the host": lambda x: x[torch.tensor([0, 2])],
    "sum with the host": lambda x: x + torch.ones(3),
    "new tensor of values": lambda x: x + x.new_tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("work", SEEN.values(), ids=list(SEEN))
def test_pretended_device_sees_what_waits_or_mixes(work):
    """Other operations pass."""
    with PretendedDevice() as device:
        x = torch.arange(3.0).to(DEVICE, non_blocking=True)
        x[:1] = (x.double() * torch.tensor(2.0) + x.new_full((), 3) + torch.arange(3, device=DEVICE)).sum()
        assert not device.waits
        try:
            work(x)
        except AssertionError:
            return
    assert device.waits


def test_step_that_the_scaler_skips_moves_nothing_but_the_statistics(tmp_path):
    """Like the first steps of ``train.amp=fp16``: the gradients overflow, the losses do not."""
    run, usual = (trainer("train_pycda", SMALL, torch.device("cpu"), tmp_path) for _ in range(2))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    weights = [parameter.clone() for parameter in run.model.parameters()]
    skipped, taken = run.step().values, usual.step().values
    assert all(torch.equal(*pair) for pair in zip(weights, run.model.parameters(), strict=True))
    source = [{k: v for k, v in each.items() if k.startswith("source/")} for each in (skipped, taken)]
    assert source[0] == source[1]  # from the same weights, and not scaled
    assert bn_updates(run.model) == bn_updates(usual.model)
    rates = [group["lr"] for group in run.optimizer.param_groups]
    run.set_learning_rate(20000)  # by the index of the step, also after skipped steps
    factor = learning_rate_factor(run.config.train, 20000)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([factor * rate for rate in rates])
    run.scaler.update(1.0)
    run.step()
    assert not any(torch.equal(*pair) for pair in zip(weights, run.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("gpus", "processes", "expected"),
    [(0, 2, ("cpu", "gloo")), (2, 2, ("cuda:1", "nccl")), (1, 2, ("cuda:0", "gloo"))],
)
def test_processes_share_a_gpu_where_there_are_fewer(gpus, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", "1")
    device, backend = distributed.device_and_backend()
    assert (str(device), backend) == expected


@pytest.mark.parametrize(
    ("script", "variant"),
    [("train_adabn", gpu.RELEASED), ("train_pycda", "bf16, channels_last")],
)
def test_rows_of_the_gpu_benchmark_run_on_a_cpu(script, variant):
    found = gpu.measure(script, variant, torch.device("cpu"), SMALL, repeats=1)
    assert found["images"] == pytest.approx(1000 * 4 / found["ms"]) and found["waits"] == 0
    assert gpu.line(script, variant, found).count("|") == gpu.line(script, variant, "out of memory").count("|") == 7


def test_gpu_benchmark_runs_the_golden_tests():
    passed, said = gpu.run_tests(["tests/method/test_curriculum.py", "-k", "released_code"], torch.device("cpu"))
    assert passed and "passed" in said


def test_gpu_benchmark_without_a_gpu_was_not_run(tmp_path):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # by conftest.py
    with pytest.raises(UserError, match="not run"):
        gpu.main(tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
