"""One code path for one process and for many: everything here is a no-op in a single process."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.launcher import follow_launcher

SMALL = 2**16  # values of a gradient: below, copying them takes less time than a message of their own


def setup() -> torch.device:
    """Join the process group that torchrun describes in the environment, and return this process's device.

    Backend ``nccl`` with CUDA, ``gloo`` on the CPU. Without torchrun's variables nothing is initialised.
    """
    follow_launcher()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    return device


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over all ranks, differentiable.

    Every rank back-propagates the same *global* loss along its own path only, and ``all_reduce_gradients`` adds the
    paths up; so the backward pass of this sum is the identity.
    """
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


def all_reduce_gradients(module: nn.Module) -> None:
    """Add up the parameter gradients of all ranks.

    Our losses are already global means (see ``all_reduce_sum``), so gradients are summed, not averaged. A parameter
    without gradient (the auxiliary head in a target step) must be without on every rank. Small gradients share a
    message, as each costs its latency; large ones are spared the copy; all are under way at once.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    small = [gradient for gradient in gradients if gradient.numel() < SMALL]
    shared = torch.cat([gradient.flatten() for gradient in small])  # never empty: biases, batch norms
    large = [gradient for gradient in gradients if gradient.numel() >= SMALL]
    for message in [dist.all_reduce(values, async_op=True) for values in (shared, *large)]:
        message.wait()
    for gradient, total in zip(small, shared.split([gradient.numel() for gradient in small]), strict=True):
        gradient.copy_(total.view_as(gradient))


def broadcast_model(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_over_ranks(value: float, device: torch.device) -> float:
    """Sum of a number over all ranks, for decisions that all of them have to take alike."""
    if world_size() == 1:
        return value
    total = torch.tensor(float(value), device=device)
    dist.all_reduce(total)
    return total.item()


def gather(items: list) -> list:
    """The items of all ranks, in the order of the ranks."""
    if world_size() == 1:
        return items
    lists: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]
