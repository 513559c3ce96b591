"""One iteration of every recipe on a device that only pretends to be one: what would go wrong on a GPU alone."""

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
from tests.training.pretended import DEVICE, HostValuesError, MixedDevicesError, OnDevice, PretendedDevice
from utils import distributed
from utils.engine.trainer import learning_rate_factor

pytestmark = pytest.mark.slow

SMALL = [
    *("model.encoder=resnet10_dilated16", "model.decoder=fcn", "model.fc_dim=512", "model.dropout=0.0"),
    *("source.input_size=[64, 64]", "target.input_size=[64, 64]", "source.crop_size=null", "target.crop_size=null"),
    *("train.batch_size=2", "curriculum.conf_threshold=0.16"),
]
PAPER = [
    *("curriculum.image_target=source", "curriculum.image_loss=ce", "curriculum.region_pool=probs"),
    *("curriculum.merge_1x1=true", "curriculum.drop_saturated=false"),
]
VARIANTS = {"paper": PAPER, "in parts": ["train.iter_size=2", "train.batch_size=4"]}  # of PyCDA
CASES = [(script, []) for script in RECIPES] + [("train_pycda", keys) for keys in VARIANTS.values()]


@pytest.mark.parametrize(("script", "keys"), CASES, ids=[*RECIPES, *VARIANTS])
def test_iteration_mixes_no_devices_and_waits_once(script, keys, tmp_path, monkeypatch):
    """And computes on the device what it computes on the CPU."""
    expected = trainer(script, [*SMALL, *keys], torch.device("cpu"), tmp_path).step().values
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    with PretendedDevice() as device:
        run = trainer(script, [*SMALL, *keys], DEVICE, tmp_path)
        device.waits.clear()  # the network's way to the device
        found = run.step().values
        assert len(device.waits) == 1, device.waits
        assert all(isinstance(tensor, OnDevice) for tensor in run.model.state_dict().values())
    assert found.keys() == expected.keys() and "source/total" in found
    for name, value in found.items():
        of_labels = isinstance(value, dict) or "/labelled/" in name  # one pixel more or less
        assert value == pytest.approx(expected[name], abs=2e-3 if of_labels else 0, rel=1e-4), name


def on_device(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE, non_blocking=True)


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "condition": lambda x: 1 if x.sum() > 0 else 0,
    "list": lambda x: x.tolist(),
    "copy to the host": lambda x: x.cpu(),
    "into the host's memory": lambda x: torch.zeros(3).copy_(x),
    "copy that blocks": lambda x: torch.ones(3).to(DEVICE),
    "where": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "assignment by a mask": lambda x: x.__setitem__(x > 1, x[:1] * torch.ones(())),
    "index on the host": lambda x: x[torch.tensor([0, 2])],
    "bincount": lambda x: x.long().bincount(),
}
FAILS: dict[str, tuple[type[AssertionError], Callable[[Tensor], object]]] = {
    "sum": (MixedDevicesError, lambda x: x + torch.ones(3)),
    "concatenation": (MixedDevicesError, lambda x: torch.cat([x, torch.ones(1)])),
    "number in a list of tensors": (MixedDevicesError, lambda x: torch.stack([x[0], torch.tensor(1.0)])),
    "backward": (MixedDevicesError, lambda x: (x.clone().requires_grad_() * torch.ones(3)).sum().backward()),
    "new tensor": (HostValuesError, lambda x: x + x.new_tensor([1.0, 2.0, 3.0])),
}
IS_FINE: dict[str, Callable[[Tensor], object]] = {
    "numbers": lambda x: (x + 1) * torch.tensor(2.0),
    "new tensors": lambda x: x + x.new_full((), 3) + torch.arange(3, device=x.device) + torch.zeros_like(x),
    "copy that does not block": lambda x: on_device(torch.ones(3)) + x,
    "assignment": lambda x: x.__setitem__(slice(1), 5.0),
    "other type": lambda x: x.double().sum(),
}


@pytest.mark.parametrize("work", WAITS.values(), ids=list(WAITS))
def test_pretended_device_counts_what_waits(work):
    with PretendedDevice() as device:
        work(on_device(torch.arange(3.0)))
    assert device.waits


@pytest.mark.parametrize(("error", "work"), FAILS.values(), ids=list(FAILS))
def test_pretended_device_refuses_what_a_device_would(error, work):
    with PretendedDevice(), pytest.raises(error):
        work(on_device(torch.arange(3.0)))


@pytest.mark.parametrize("work", IS_FINE.values(), ids=list(IS_FINE))
def test_pretended_device_lets_the_rest_pass(work):
    with PretendedDevice() as device:
        work(on_device(torch.arange(3.0)))
    assert not device.waits


def test_step_that_the_scaler_skips_moves_nothing_but_the_statistics(tmp_path):
    """As the first ones of ``train.amp=fp16``: the gradients overflow, the losses do not."""
    run, usual = (trainer("train_pycda", SMALL, torch.device("cpu"), tmp_path) for _ in range(2))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    weights = [parameter.clone() for parameter in run.model.parameters()]
    skipped, taken = run.step().values, usual.step().values
    assert all(torch.equal(*pair) for pair in zip(weights, run.model.parameters(), strict=True))
    source = [{k: v for k, v in each.items() if k.startswith("source/")} for each in (skipped, taken)]
    assert source[0] == source[1]  # of the same weights, and not scaled
    assert bn_updates(run.model) == bn_updates(usual.model)
    rates = [group["lr"] for group in run.optimizer.param_groups]
    run.set_learning_rate(20000)  # by the index of the step, whatever was skipped
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
    [("train_adabn", gpu.RELEASED), ("train_pycda_spatial", gpu.RELEASED), ("train_pycda", "bf16, channels_last")],
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
