"""One code path for one process and for many: everything here is a no-op in a single process."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataset.messages import UserError
from utils.launcher import follow_launcher
from utils.peers import LostError, Peers

T = TypeVar("T")
Facts = Callable[[], Mapping[str, str]]  # values by name
SMALL = 2**16  # values of a gradient: below, copying them takes less time than a message of their own
_peers: Peers | None = None  # of the process group, which torch too keeps one of


@contextmanager
def process_group(minutes: float, facts: Facts) -> Iterator[torch.device]:
    """For the block, join the processes that torchrun describes in the environment; gives this process's device.

    Backend ``nccl`` with CUDA, ``gloo`` on the CPU and where processes share a GPU, which ``nccl`` refuses. Without
    torchrun's variables nothing is initialised. An error in the block ends it without waiting for the others, which
    learn of it.

    Args:
        minutes: that a process waits for the others, at the start and in every message, before it is an error.
        facts: gives what all processes must have been started with; asked where there are several.

    Raises:
        DisagreementError: ``facts`` differ; before anything else happens.
        LostError: a process did not come, does not answer or ended; the message says which.
    """
    global _peers
    follow_launcher()
    device, backend = device_and_backend()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield device
        return
    _peers = Peers.of_environment(minutes)
    whole = False
    try:
        _peers.meet()
        _peers.compare({**facts(), "device": device.type, "backend": backend, "torch": torch.__version__})
        dist.init_process_group(
            backend,
            store=_peers.store.torch_store,
            rank=_peers.rank,
            world_size=_peers.world_size,
            timeout=timedelta(minutes=minutes),
            device_id=device if backend == "nccl" else None,
        )
        with explained():
            yield device
        whole = True
    except SystemExit:  # asked to stop
        whole = dist.is_initialized()
        raise
    finally:
        if whole:  # else taking the group down would wait for those that are in it
            dist.destroy_process_group()
        _peers = None


def device_and_backend() -> tuple[torch.device, str]:
    """What this process computes on, and how it sends messages."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    index = int(os.environ.get("LOCAL_RANK", 0)) % gpus
    return torch.device("cuda", index), "nccl" if here <= gpus else "gloo"


@contextmanager
def explained() -> Iterator[None]:
    """For the block, tell the other processes of an error that ends this one, and say which of them does not answer."""
    try:
        yield
    except Exception as error:
        cause = error if _peers is None or isinstance(error, LostError) else _peers.explain(error)
        if cause is error:
            raise
        raise cause from error


def compare(facts: Facts) -> None:
    """Check that all processes have the same ``facts``; see ``process_group`` for arguments and what is raised."""
    if _peers is not None:
        _peers.compare(facts())


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives in the first process, in all of them, which wait for it however long it takes.

    An error that the user can mend is raised in all of them too.
    """
    if _peers is None:
        return make()
    made: list[Any] = [None, None]
    if is_main():
        try:
            made[0] = make()
        except (UserError, OSError) as error:
            made[1] = error
    _by_store(_peers)
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def wait_for_first() -> None:
    """Wait, however long, until the first process has come here too."""
    if _peers is not None:
        _by_store(_peers)
        dist.barrier()


def _by_store(peers: Peers) -> None:
    """Wait without the limit in time that messages have. The store goes with the launcher, the processes may not yet:
    then the message that follows waits."""
    with suppress(LostError):
        peers.wait_for_first()


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

    Every rank back-propagates the same *global* loss along its own path only, and ``summed_gradients`` adds the
    paths up; so the backward pass of this sum is the identity.
    """
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


@contextmanager
def summed_gradients(module: nn.Module, backwards: int = 1) -> Iterator[None]:
    """For the block, which computes the parameters' gradients: add up those of all ranks, while it still computes.

    Our losses are already global means (see ``all_reduce_sum``), so gradients are summed, not averaged. A parameter
    without gradient (the auxiliary head in a target step) must be without on every rank. Small gradients share a
    message after the block, as each costs its latency; a large one is under way as soon as it is there. (torch's
    DistributedDataParallel refuses a synchronised batch norm on the CPU, and would search the graph of every step for
    parameters without gradient.)

    Args:
        backwards: passes that add to every gradient of the block.
    """
    if world_size() == 1:
        yield
        return
    passes: Counter[Tensor] = Counter()
    under_way: dict[Tensor, Any] = {}  # messages

    def start(parameter: Tensor) -> None:
        passes[parameter] += 1
        if passes[parameter] == backwards and parameter.grad is not None:
            under_way[parameter] = dist.all_reduce(parameter.grad, async_op=True)

    hooks = [p.register_post_accumulate_grad_hook(start) for p in module.parameters() if p.numel() >= SMALL]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    small = [p.grad for p in module.parameters() if p.grad is not None and p not in under_way]
    shared = torch.cat([gradient.flatten() for gradient in small])  # never empty: biases, batch norms
    dist.all_reduce(shared)
    for message in under_way.values():
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
    total = torch.full((), float(value), device=device)
    dist.all_reduce(total)
    return total.item()


def gather(items: list) -> list:
    """The items of all ranks, in the order of the ranks."""
    if world_size() == 1:
        return items
    lists: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]
