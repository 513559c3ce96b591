"""The running average of the released code, exact statistics, and the global batch of several processes."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from models.batchnorm import BatchNorm2d, PooledStatistics, bn_updates, reset_bn_statistics, set_bn_updates

MOMENTUM = 0.001


def test_running_average_follows_the_bias_corrected_formula_over_50_updates():
    generator = torch.Generator().manual_seed(0)
    bn = BatchNorm2d(3, momentum=MOMENTUM)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for t in range(1, 51):
        x = torch.randn(2, 3, 5, 7, generator=generator) * t + 0.1 * t
        bn(x)
        m = MOMENTUM / (1 - (1 - MOMENTUM) ** (t + 1))
        values = x.double().transpose(0, 1).flatten(1)
        mean = (1 - m) * mean + m * values.mean(1)
        var = (1 - m) * var + m * values.var(1)
    assert bn.updates == 50
    assert torch.allclose(bn.running_mean.double(), mean, rtol=1e-5)
    assert torch.allclose(bn.running_var.double(), var, rtol=1e-5)


def test_plain_momentum_and_evaluation():
    bn = BatchNorm2d(2, momentum=0.1, bias_correction=False)
    x = torch.randn(4, 2, 3, 3)
    bn(x)
    assert torch.allclose(bn.running_mean, 0.1 * x.mean((0, 2, 3)))
    before = bn.running_mean.clone()
    y = bn.eval()(x)
    assert torch.equal(before, bn.running_mean) and bn.updates == 1
    assert torch.allclose(y, (x - before.view(1, 2, 1, 1)) / (bn.running_var + bn.eps).sqrt().view(1, 2, 1, 1), atol=1e-6)


def test_counter_is_beside_the_state_dict():
    net = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))
    net(torch.randn(2, 2, 3, 3))
    assert {key.split(".")[1] for key in net.state_dict()} == {"weight", "bias", "running_mean", "running_var"}
    other = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))
    other.load_state_dict(dict(net.state_dict()))
    set_bn_updates(other, bn_updates(net))
    assert bn_updates(other) == {"0": 1, "1": 1}
    reset_bn_statistics(other)
    assert bn_updates(other) == {"0": 0, "1": 0} and other[0].running_mean.abs().sum() == 0


def test_one_value_per_channel_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 1\): raise the batch size"):
        BatchNorm2d(4)(torch.randn(1, 4, 1, 1))


def test_pooled_statistics_are_exact_and_change_nothing_before_apply():
    bn = BatchNorm2d(3)
    batches = [torch.randn(n, 3, 4, 5) * 3 + n for n in (1, 4, 2)]
    with PooledStatistics(bn) as statistics:
        for batch in batches:
            bn(batch)
    assert bn.running_mean.abs().sum() == 0 and bn.updates == 0
    statistics.apply()
    values = torch.cat(batches).double().transpose(0, 1).flatten(1)
    assert torch.allclose(bn.running_mean.double(), values.mean(1), rtol=1e-6)
    assert torch.allclose(bn.running_var.double(), values.var(1), rtol=1e-6)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), BatchNorm2d(4, momentum=0.1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _one_rank(rank: int, world: int, file: str, images: torch.Tensor, queue: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    net = _network()
    share = images.chunk(world)[rank].clone().requires_grad_()
    net(share).square().sum().backward()
    grads = [p.grad for p in net.parameters()]
    for grad in grads:
        dist.all_reduce(grad)
    parts = [torch.zeros_like(share) for _ in range(world)]
    dist.all_gather(parts, share.grad)
    if rank == 0:
        queue.put([t.tolist() for t in (torch.cat(parts), net[1].running_mean, net[1].running_var, *grads)])
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one_batch(tmp_path):
    images = torch.randn(4, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_one_rank, (2, os.fspath(tmp_path / "rendezvous"), images, queue), nprocs=2)
    found = queue.get()
    net, whole = _network(), images.clone().requires_grad_()
    net(whole).square().sum().backward()
    expected = (whole.grad, net[1].running_mean, net[1].running_var, *(p.grad for p in net.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(torch.tensor(ours), theirs, rtol=1e-5, atol=1e-5)
