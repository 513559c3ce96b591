"""The running average of the released code, exact statistics, and the global batch of several processes."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._dynamo.testing import CompileCounter

from models import batchnorm, build_segmentor, heads
from models.batchnorm import (
    BatchNorm2d,
    PooledStatistics,
    bn_updates,
    configure_batchnorm,
    frozen_statistics,
    recomputed,
    set_bn_updates,
)
from models.segmentor import set_dropout

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
    mean, deviation = (moment.view(1, 2, 1, 1) for moment in (before, (bn.running_var + bn.eps).sqrt()))
    assert torch.allclose(y, (x - mean) / deviation, atol=1e-6)


def test_counter_is_beside_the_state_dict():
    net = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))
    net(torch.randn(2, 2, 3, 3))
    assert {key.split(".")[1] for key in net.state_dict()} == {"weight", "bias", "running_mean", "running_var"}
    other = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))
    other.load_state_dict(dict(net.state_dict()))
    set_bn_updates(other, bn_updates(net))
    assert bn_updates(other) == {"0": 1, "1": 1}


def test_momentum_is_set_and_update_counts_are_checked():
    net = nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))
    configure_batchnorm(net, momentum=0.5, bias_correction=False)
    x = torch.randn(2, 2, 3, 3)
    net(x)
    assert torch.allclose(net[0].running_mean, 0.5 * x.mean((0, 2, 3)))
    for updates in ({"0": 1}, {"0": 1, "1": 1, "2": 1}):
        with pytest.raises(ValueError, match="are not those of"):
            set_bn_updates(net, updates)


def test_frozen_statistics_normalise_by_the_batch_and_count_nothing():
    bn, x = BatchNorm2d(2), torch.randn(4, 2, 3, 3) + 5
    with frozen_statistics(bn):
        y = bn(x)
    assert y.mean().abs() < 1e-5 and bn.running_mean.abs().sum() == 0 and (bn.running_var == 1).all()
    assert bn.updates == 0
    bn(x)
    assert bn.updates == 1 and bn.running_mean.abs().sum() > 0


def test_recomputation_in_the_backward_pass_updates_statistics_once():
    x, found = torch.randn(4, 2, 6, 5), []
    for run in (lambda net, x: net(x), recomputed):
        net = _network()
        for _ in range(3):
            run(net, x).square().sum().backward()
        assert net[1].updates == 3
        found.append([net[1].running_mean, net[1].running_var, *(p.grad for p in net.parameters())])
    assert all(torch.allclose(kept, again, rtol=1e-6) for kept, again in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18_dilated16", "vgg16"])
def test_checkpointed_encoder_changes_nothing_but_memory(encoder, monkeypatch):
    monkeypatch.setattr(heads, "FC_WIDTH", 16)
    images, results, kept = torch.randn(2, 3, 32, 48), [], {}
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_segmentor(encoder, "fcn8s" if encoder == "vgg16" else "fcn", 5, 512, use_aux=False)
        set_dropout(model, 0.0)
        model.checkpoint_encoder = checkpointed
        saved = kept[checkpointed] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            features = model.encoder(images, recompute=checkpointed)
        for _ in range(2):
            model(images)["logits"].square().mean().backward()
        gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
        results.append(model.state_dict() | gradients | {f"features {i}": f for i, f in enumerate(features)})
        assert set(bn_updates(model).values()) <= {2, 3}  # the head did not get the first batch
    plain, saving = results
    assert all(torch.allclose(plain[name], saving[name], rtol=1e-4, atol=1e-6) for name in plain)
    assert sum(kept[True]) < 0.6 * sum(kept[False])


def test_native_synchronised_forward_takes_this_module():
    """On one process torch's synchronised forward is plain batch norm; it needs a batch counter."""
    bn, x = BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    for plain, native in zip(bn.of_one_process(x), bn.synchronised_by_torch(x), strict=True):
        assert torch.allclose(plain, native)
    assert bn.running_mean.abs().sum() == 0 and (bn.running_var == 1).all()  # the kernel does not update the average


def test_recomputation_that_ends_in_the_native_forward_restores_the_average(monkeypatch):
    """torch stops recomputation by an exception at the last needed tensor, which may be inside batch norm."""
    monkeypatch.setattr(BatchNorm2d, "forward", lambda self, x: self.synchronised_by_torch(x)[0])
    block = nn.Sequential(nn.Conv2d(2, 4, 3), BatchNorm2d(4))
    recomputed(block, torch.randn(4, 2, 6, 5) + 1).square().sum().backward()
    assert block[1].running_mean.abs().sum() == 0 and (block[1].running_var == 1).all()


def test_compiled_once_for_all_steps():
    """Counter and momentum differ in every step; the traced graph must not."""
    net, plain = _network(), _network()
    traced = CompileCounter()
    compiled = torch.compile(net, backend=traced, fullgraph=True)
    for _ in range(4):
        x = torch.randn(4, 2, 6, 5)
        assert torch.allclose(compiled(x), plain(x))
    assert traced.frame_count == 1 and bn_updates(net) == bn_updates(plain) == {"1": 4}
    assert torch.allclose(net[1].running_mean, plain[1].running_mean)


def test_moments_are_the_same_bits_however_ranks_share_the_images(monkeypatch):
    """Some means lie halfway between two float32 numbers: one more rounding in float64 would change the result."""
    x, shares = 3 * torch.randn(6, 256, 5, 7, generator=torch.Generator().manual_seed(0)) + 2, []
    whole = batchnorm.global_moments(x)
    monkeypatch.setattr(batchnorm, "world_size", lambda: 2)
    monkeypatch.setattr(batchnorm, "of_all_ranks", lambda values: shares.append(values) or torch.stack(shares[-2:]))
    for rank in (0, 1):
        mean, var, count = batchnorm.global_moments(x[3 * rank : 3 * rank + 3])
    assert count == whole[2] == 6 * 5 * 7
    assert torch.equal(mean.float(), whole[0].float()) and torch.equal(var.float(), whole[1].float())
    exact = x.double()
    assert torch.allclose(mean, exact.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(var, exact.var((0, 2, 3), correction=0), rtol=1e-6)


def test_one_value_per_channel_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 1\): raise the batch size"):
        BatchNorm2d(4)(torch.randn(1, 4, 1, 1))


def test_pooled_statistics_are_exact_and_change_nothing_before_apply():
    bn = BatchNorm2d(3)
    batches = [torch.randn(n, 3, 4, 5) * 3 + n for n in (1, 4, 2)]
    with PooledStatistics(bn) as statistics:
        for batch in batches:
            bn.train()(batch)
            bn.eval()(batch + 7)  # evaluation in between is not counted
    assert bn.running_mean.abs().sum() == 0 and bn.updates == 0
    statistics.apply()
    values = torch.cat(batches).double().transpose(0, 1).flatten(1)
    assert torch.allclose(bn.running_mean.double(), values.mean(1), rtol=1e-6)
    assert torch.allclose(bn.running_var.double(), values.var(1), rtol=1e-6)


def test_batch_norms_that_saw_nothing_keep_their_statistics():
    net = nn.ModuleList([BatchNorm2d(2), BatchNorm2d(2)])
    net[1].running_mean.fill_(3)
    with PooledStatistics(net) as statistics:
        net[0](torch.randn(2, 2, 3, 3))
    statistics.apply()
    assert net[0].running_mean.any() and (net[1].running_mean == 3).all() and (net[1].running_var == 1).all()


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), BatchNorm2d(4, momentum=0.1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _results(net: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results of the images (logits, gradients) and of the network (statistics, gradients)."""
    share = images.clone().requires_grad_()
    logits = net(share)
    logits.square().sum().backward()
    running = [net[1].running_mean.clone(), net[1].running_var.clone()]
    with PooledStatistics(net) as statistics:
        net(images)
    statistics.apply()
    pooled = [net[1].running_mean, net[1].running_var]
    return [logits.detach(), share.grad], [*(p.grad for p in net.parameters()), *running, *pooled]


def _one_rank(rank: int, world: int, file: str, batches: list[torch.Tensor], queue: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for images in batches:
        net = _network()
        of_images, of_network = _results(net, images.chunk(world)[rank])
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
        for i, share in enumerate(of_images):
            parts = [torch.zeros_like(share) for _ in range(world)]
            dist.all_gather(parts, share)
            of_images[i] = torch.cat(parts)
        if rank == 0:
            queue.put([t.tolist() for t in (*of_images, *of_network)])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_batch(tmp_path):
    """Logits, statistics and gradients, also for a large mean, for which E[x^2] - E[x]^2 would cancel."""
    small = torch.randn(4, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    batches = [small, small + 3000]
    queue = mp.get_context("forkserver").SimpleQueue()
    arguments = (2, os.fspath(tmp_path / "rendezvous"), batches, queue)
    mp.start_processes(_one_rank, arguments, nprocs=2, start_method="forkserver")  # of the server in tests/processes.py
    for images, tolerance in zip(batches, (1e-5, 5e-3), strict=True):
        of_images, of_network = _results(_network(), images)
        for found, expected in zip(queue.get(), (*of_images, *of_network), strict=True):
            scale = max(1.0, expected.abs().max().item())
            assert torch.allclose(torch.tensor(found), expected, rtol=0, atol=tolerance * scale)
