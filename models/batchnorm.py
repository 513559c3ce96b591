"""Batch norm with the released code's running average, over all processes, and exact statistics on demand."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import TracebackType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.distributed import world_size


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose backward sums too: every rank's loss depends on every rank's values."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class BatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the global batch with a bias-corrected running average.

    Since the statistics were reset, update t (from 1) has momentum ``m / (1 - (1 - m) ** (t + 1))``: the initial value
    counts as t = 0 and early updates weigh as much as later ones (released code, m = 0.001). The state dict has no
    counter, as the official one has none that is needed; ``updates`` is saved beside it.
    """

    def __init__(self, num_features: int, momentum: float = 0.001, bias_correction: bool = True) -> None:
        super().__init__(num_features, momentum=momentum)
        # The native synchronised kernel counts batches; the official state dict does not have that counter.
        self.register_buffer("num_batches_tracked", torch.tensor(0), persistent=False)
        self.base_momentum, self.bias_correction, self.updates = momentum, bias_correction, 0
        self.frozen = False  # see frozen_statistics

    def _load_from_state_dict(self, *args) -> None:
        nn.Module._load_from_state_dict(self, *args)  # the parent would invent num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape. Raises ValueError for fewer than two values a channel in training."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if x.numel() // x.shape[1] * world_size() < 2:
            raise ValueError(f"batch norm needs two values per channel in training, got {tuple(x.shape)}: raise the batch size")
        self.momentum = self._next_momentum()
        if world_size() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)
        return super().forward(x) if x.is_cuda else self._forward_over_ranks(x)

    def _next_momentum(self) -> float:
        if self.frozen:
            return 0.0
        self.updates += 1
        m = self.base_momentum
        return m / (1 - (1 - m) ** (self.updates + 1)) if self.bias_correction else m

    def _forward_over_ranks(self, x: Tensor) -> Tensor:
        channels, shape = x.shape[1], (1, -1, 1, 1)
        values = x.float()
        sums = torch.cat([values.sum((0, 2, 3)), values.new_tensor([x.numel() / channels])])
        total, count = _SumOverRanks.apply(sums).split([channels, 1])
        mean = total / count
        centred = values - mean.view(shape)  # E[x^2] - E[x]^2 would cancel where the mean is large
        var = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, BatchNorm2d]]:
    """(name, module) of every batch norm of ``model``."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm2d))


def configure_batchnorm(model: nn.Module, momentum: float, bias_correction: bool) -> None:
    """Set how every batch norm averages its statistics.

    Args:
        momentum: weight m of a new batch once the correction has faded, in (0, 1].
        bias_correction: update t has momentum ``m / (1 - (1 - m) ** (t + 1))``; otherwise m from the start.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"batch-norm momentum is {momentum}, it must be above 0 and at most 1")
    for _, module in batch_norms(model):
        module.base_momentum, module.bias_correction = momentum, bias_correction


def bn_updates(model: nn.Module) -> dict[str, int]:
    """Updates since the last reset by module name; belongs into a checkpoint beside the state dict."""
    return {name: module.updates for name, module in batch_norms(model)}


def set_bn_updates(model: nn.Module, updates: dict[str, int]) -> None:
    """Inverse of ``bn_updates``. Raises ValueError unless exactly the model's batch norms are named."""
    modules = dict(batch_norms(model))
    if updates.keys() != modules.keys():
        differing = ", ".join(sorted(updates.keys() ^ modules.keys())[:5])
        raise ValueError(f"update counts do not name the network's batch norms, they differ in: {differing}")
    for name, module in modules.items():
        module.updates = updates[name]


def reset_bn_statistics(model: nn.Module) -> None:
    """Mean 0, variance 1, no update: as in a new network."""
    for _, module in batch_norms(model):
        module.running_mean.zero_()
        module.running_var.fill_(1)
        module.updates = 0


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Train-mode forwards within normalise by the batch as always, but leave the running statistics alone."""
    modules = [module for _, module in batch_norms(model)]
    for module in modules:
        module.frozen = True
    try:
        yield
    finally:
        for module in modules:
            module.frozen = False


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)`` whose activations are not kept but computed again in the backward pass.

    The second computation does not count as a batch: running statistics are as without this.
    """
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(block)))


class PooledStatistics:
    """Exact mean and variance of every batch norm's input over all train-mode forwards within the context.

    Sums over the forwards are kept in float64, so that the result hardly depends on how the images are batched. Running
    statistics are left as they were until ``apply``; a batch norm that was not reached (auxiliary head) keeps its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(batch_norms(model))
        self.moments: dict[str, Tensor] = {}  # (3, C) float64: count, sum, sum of squares

    def __enter__(self) -> "PooledStatistics":
        self.before = {
            name: (module.running_mean.clone(), module.running_var.clone(), module.updates)
            for name, module in self.modules.items()
        }
        self.hooks = [
            module.register_forward_pre_hook(partial(self._collect, name)) for name, module in self.modules.items()
        ]
        return self

    def _collect(self, name: str, module: BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if not module.training:
            return
        x = inputs[0].detach().float()
        var, mean = (moment.double() for moment in torch.var_mean(x, (0, 2, 3), correction=0))
        count = torch.full_like(mean, x.numel() / len(mean))
        moments = torch.stack([count, count * mean, count * (var + mean.square())])
        self.moments[name] = self.moments[name] + moments if name in self.moments else moments

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self.hooks:
            hook.remove()
        for name, module in self.modules.items():
            mean, var, module.updates = self.before[name]
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)

    def apply(self) -> None:
        """Write the pooled mean and unbiased variance, over all processes, into the running statistics."""
        for name, module in self.modules.items():
            moments = self.moments.get(name, module.running_mean.new_zeros(3, module.num_features, dtype=torch.float64))
            if world_size() > 1:
                dist.all_reduce(moments)
            count, total, squares = moments
            if count[0] > 0:
                mean = total / count
                module.running_mean.copy_(mean)
                module.running_var.copy_((squares / count - mean.square()) * count / (count - 1))
