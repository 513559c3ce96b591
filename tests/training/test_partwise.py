"""Gradients from parts of a batch equal those of the whole batch, also for losses that are no mean over the parts."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d, bn_updates
from utils import distributed
from utils.engine.losses import PartwiseForward
from utils.pycda.curriculum import PyramidCurriculum


def network(batch_norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [BatchNorm2d(8)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(8, 5, 1))


def gradients(net: nn.Module, forward, images: Tensor) -> list[Tensor]:
    loss = PyramidCurriculum(None, conf_threshold=0.25)(forward(images)["logits"])["total"]
    net.zero_grad()
    loss.backward()
    if isinstance(forward, PartwiseForward):
        forward.backward()
    return [loss.detach(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_the_curriculum_are_exact(parts):
    net = network().double()
    images = torch.randn(4, 3, 16, 24, dtype=torch.float64) * torch.tensor([1.0, 0.1, 5.0, 2.0]).view(4, 1, 1, 1)

    def forward(x: Tensor, **options: bool) -> dict[str, Tensor]:
        return {"logits": net(x)}

    whole = gradients(net, forward, images)
    partwise = gradients(net, PartwiseForward(net, forward, parts), images)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(whole, partwise, strict=True))
    halves = [gradients(net, forward, part) for part in images.chunk(parts)]
    mean = sum(half[1] for half in halves) / parts
    assert not torch.allclose(mean, whole[1], rtol=1e-2)  # the sum of the parts' own losses would give this


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_are_added_up_once_all_parts_are_in(monkeypatch, parts):
    """Two ranks with the same images have twice the gradients of one. Convolutions are reduced before the backward pass
    returns. One layer gets no gradient."""
    net = network()
    net.aux = nn.Conv2d(8, 5, 1)
    forward = PartwiseForward(net, lambda x, **_: {"logits": net[:4](x)}, parts)
    images, messages = torch.randn(4, 3, 8, 8), []

    def add(values: Tensor, async_op: bool = False) -> SimpleNamespace:
        messages.append(values.mul_(2))
        return SimpleNamespace(wait=lambda: None)

    def backward() -> None:
        net.zero_grad()
        forward(images)["logits"].square().sum().backward()
        forward.backward()

    backward()
    one = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "SMALL", 9)
    monkeypatch.setattr(distributed.dist, "all_reduce", add)
    for _ in range(2):  # a step leaves nothing for the next one
        with distributed.summed_gradients(net, parts):
            backward()
            early = len(messages)
        two = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert two.keys() == one.keys() and all(torch.equal(two[name], 2 * one[name]) for name in one)
        assert (early, len(messages)) == (2, 3)
        messages.clear()


def test_dropout_is_the_same_in_both_forwards_and_batch_norm_counts_once():
    net = network(batch_norm=True, dropout=0.5)
    seen = []

    def forward(x: Tensor, **options: bool) -> dict[str, Tensor]:
        seen.append(net(x))
        return {"logits": seen[-1]}

    gradients(net, PartwiseForward(net, forward, 2), torch.randn(4, 3, 16, 16))
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert bn_updates(net) == {"1": 2}


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="3 images.*train.iter_size=2"):
        PartwiseForward(network(), lambda x: {"logits": x}, 2)(torch.zeros(3, 3, 8, 8))
