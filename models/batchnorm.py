"""Batch norm with the released code's running average, over all processes, and exact statistics on demand."""

from collections.abc import Iterator
from functools import partial
from types import TracebackType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.num_batches_tracked = None
        self.base_momentum, self.bias_correction, self.updates = momentum, bias_correction, 0

    def _load_from_state_dict(self, *args) -> None:
        nn.Module._load_from_state_dict(self, *args)  # the parent would invent num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape. Raises ValueError for fewer than two values a channel in training."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if x.numel() // x.shape[1] * world_size() < 2:
            raise ValueError(f"batch norm needs two values per channel in training, got {tuple(x.shape)}: raise the batch size")
        self.updates += 1
        m = self.base_momentum
        self.momentum = m / (1 - (1 - m) ** (self.updates + 1)) if self.bias_correction else m
        if world_size() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)
        return super().forward(x) if x.is_cuda else self._forward_over_ranks(x)

    def _forward_over_ranks(self, x: Tensor) -> Tensor:
        values = x.float()
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values.new_tensor([x.numel() / x.shape[1]])])
        total, squares, count = _SumOverRanks.apply(sums).split([x.shape[1], x.shape[1], 1])
        mean = total / count
        var = squares / count - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        shape = (1, -1, 1, 1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, BatchNorm2d]]:
    """(name, module) of every batch norm of ``model``."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm2d))


def configure_batchnorm(model: nn.Module, momentum: float, bias_correction: bool) -> None:
    """Set how every batch norm averages its statistics."""
    for _, module in batch_norms(model):
        module.base_momentum, module.bias_correction = momentum, bias_correction


def bn_updates(model: nn.Module) -> dict[str, int]:
    """Updates since the last reset by module name; belongs into a checkpoint beside the state dict."""
    return {name: module.updates for name, module in batch_norms(model)}


def set_bn_updates(model: nn.Module, updates: dict[str, int]) -> None:
    """Inverse of ``bn_updates``; every batch norm must be named."""
    for name, module in batch_norms(model):
        module.updates = updates[name]


def reset_bn_statistics(model: nn.Module) -> None:
    """Mean 0, variance 1, no update: as in a new network."""
    for _, module in batch_norms(model):
        module.running_mean.zero_()
        module.running_var.fill_(1)
        module.updates = 0


class PooledStatistics:
    """Exact mean and variance of every batch norm's input over all train-mode forwards within the context.

    Sums are kept in float64, so that the result does not depend on how the images are batched by rounding. Running
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
        x = inputs[0].detach().double().transpose(0, 1).flatten(1)
        moments = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
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
        for name, moments in self.moments.items():
            if world_size() > 1:
                dist.all_reduce(moments)
            count, total, squares = moments
            mean = total / count
            self.modules[name].running_mean.copy_(mean)
            self.modules[name].running_var.copy_((squares / count - mean.square()) * count / (count - 1))
