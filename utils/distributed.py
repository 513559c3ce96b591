"""Communication between processes. Everything here is a no-op in a single process."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataset.messages import UserError
from dataset.program import one_line

T = TypeVar("T")
SMALL = 2**16  # values; smaller gradients are copied into one message, which is faster than one message each
LONGEST_WORK = timedelta(days=1)  # that the first process may do alone while the others wait
LAST_CALL = timedelta(seconds=10)  # after a failure, a process that does not answer within this time is lost
# gloo raises plain RuntimeErrors. These words mark them: a path in gloo's source, or gloo's own phrases.
# (Batch norm and the confusion matrix also send messages, but not through this file: no single place could wrap them.)
OF_GLOO = ("/gloo/", "pair closure", "closed by peer", "reset by peer", "Timed out waiting")
CAUSES = (
    "Check that every node has started and can use its GPUs, that MASTER_ADDR and MASTER_PORT are the same, and that "
    "no firewall blocks the ports"
)
REMEDY = (
    "Check the process (out of memory?), its machine, the network and GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME. "
    "Run the same command to resume from the last checkpoint"
)


class DisagreementError(UserError, RuntimeError):
    """Processes were started with different values; the message names each value and its rank."""


class LostError(UserError, RuntimeError):
    """A process did not start or does not answer.

    The exit status is EX_UNAVAILABLE: the same command can resume from the last checkpoint later.
    """

    status = 69


class _Barriers(NamedTuple):
    """Two gloo groups, in addition to the group for tensors. Their monitored barrier names the missing ranks.

    The first process waits at the barrier up to ``timeout``, the others up to the timeout of the group.
    """

    long: Any  # a dist.ProcessGroup; torch's type hints reject what new_group returns
    short: Any
    timeout: timedelta  # of all other messages


_barriers: _Barriers | None = None  # of the process group; like torch, one at a time


@contextmanager
def process_group(minutes: float, started_with: Callable[[], Mapping[str, str]]) -> Iterator[torch.device]:
    """Join the processes that torchrun describes in the environment, for the block. Yields this process's device.

    The backend is ``nccl`` with CUDA. It is ``gloo`` on the CPU, and if processes share a GPU, which ``nccl`` refuses.
    Without torchrun's variables nothing is initialised. After an error, the block ends without waiting for the others.

    Args:
        minutes: how long a process waits for the others, at the start and in every message.
        started_with: returns named values, which must be equal in all processes; not called for one process.

    Raises:
        DisagreementError: the values differ; raised before anything else happens.
        LostError: a process did not start, does not answer or has ended.
    """
    global _barriers
    device, backend = device_and_backend()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield device
        return
    timeout, all_there = timedelta(minutes=minutes), False
    try:
        with naming_lost_processes():
            dist.init_process_group(backend, timeout=timeout, device_id=device if backend == "nccl" else None)
            long, short = (dist.new_group(backend="gloo", timeout=limit) for limit in (LONGEST_WORK, LAST_CALL))
            _barriers = _Barriers(long, short, timeout)
            check_agreement(lambda: {**started_with(), "device": device.type, "torch": torch.__version__})
            yield device
        all_there = True
    except SystemExit:  # a stop signal, which ends all processes after the same step
        all_there = dist.is_initialized()
        raise
    finally:
        if all_there:  # otherwise destroying the group would wait for the others
            dist.destroy_process_group()
        _barriers = None


def device_and_backend() -> tuple[torch.device, str]:
    """The device of this process, and the backend for its messages."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    index = int(os.environ.get("LOCAL_RANK", 0)) % gpus
    return torch.device("cuda", index), "nccl" if here <= gpus else "gloo"


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """In the block, an error in a message between processes becomes a LostError that names the missing ranks."""
    try:
        yield
    except RuntimeError as error:
        of_gloo = any(words in str(error) for words in OF_GLOO)
        if isinstance(error, UserError) or not (of_gloo or isinstance(error, dist.DistError)):
            raise
        if _barriers is None:
            raise LostError(f"not all processes started within timeout_minutes: {one_line(error)} {CAUSES}") from error
        missing = _missing(_barriers.short, LAST_CALL) or error
        raise LostError(f"lost another process: {one_line(missing)}. {REMEDY}") from error


def _missing(group: Any, timeout: timedelta) -> RuntimeError | None:
    """Wait for all processes at the barrier of ``group``. Returns the error that names the missing ranks, if any."""
    try:
        dist.monitored_barrier(group, timeout, wait_all_ranks=True)
    except RuntimeError as error:
        return error
    return None


def wait_for_first() -> None:
    """Wait up to ``LONGEST_WORK`` until the first process calls this function too.

    The first process waits for the others as long as for a message. Raises LostError if a process is missing.
    """
    if _barriers is not None and (missing := _missing(_barriers.long, _barriers.timeout)):
        raise LostError(f"lost another process: {one_line(missing)}. {REMEDY}") from missing


def check_agreement(values: Callable[[], Mapping[str, str]]) -> None:
    """Check that the named ``values`` are equal in all processes; not called for one process.

    Raises DisagreementError, which names each difference and its rank.
    """
    if _barriers is None:
        return
    first, *others = gather([dict(values())])
    differing = []
    for rank, own in enumerate(others, 1):
        names = sorted(name for name in own.keys() | first.keys() if own.get(name) != first.get(name))
        found = [f"{name} is {own.get(name)}, but {first.get(name)} on rank 0" for name in names]
        if found:
            differing.append(f"rank {rank}: {'; '.join(found)}")
    if differing:
        raise DisagreementError(
            f"the processes were not started with the same values: {'. '.join(differing)}. Give every node the same "
            "files and the same command"
        )


def from_first(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process and return its result in all processes, which wait as in ``wait_for_first``.

    A UserError or OSError is also raised in all processes.
    """
    if _barriers is None:
        return make()
    made: list[Any] = [None, None]
    if is_main():
        try:
            made[0] = make()
        except (UserError, OSError) as error:
            made[1] = error
    wait_for_first()
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

    Every rank back-propagates the same *global* loss through its own copy of the network. ``summed_gradients`` then
    sums the gradients of all ranks, so the backward pass of this sum is the identity.
    """
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


@contextmanager
def summed_gradients(module: nn.Module, backwards: int = 1) -> Iterator[None]:
    """Sum the parameters' gradients over all ranks while the block still computes them.

    The losses are already global means (see ``all_reduce_sum``), so gradients are summed, not averaged. A parameter
    without gradient on one rank (the auxiliary head in a target step) must have none on every rank. Small gradients
    share one message after the block, because every message costs its latency. A large gradient is sent as soon as it
    is complete. (torch's DistributedDataParallel refuses synchronised batch norm on the CPU, and it would search the
    graph of every step for parameters without gradient.)

    Args:
        backwards: number of backward passes that add to each gradient in the block.
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
    """Copy the parameters and buffers of rank 0 to every rank."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_over_ranks(value: float, device: torch.device) -> float:
    """Sum of a number over all ranks, so that all of them make the same decision."""
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
