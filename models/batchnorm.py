"""Batch norm over all processes with the released code's running average, and exact statistics of many batches."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dataset.messages import ChoiceError, few

COUNTER = "num_batches_tracked"  # key of torch's batch norm that ours does not have


def world_size() -> int:
    """Number of processes that share a batch; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_all_ranks(values: Tensor) -> Tensor:
    """The values of all ranks, (R, ...). Their sum here has half the latency of gloo's all-reduce."""
    shares = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(shares, values)
    return torch.stack(shares)


class _BatchNormOfGlobalBatch(torch.autograd.Function):
    """Batch norm over all processes on the CPU, where torch has none.

    A single process uses it too, without messages: its forward pass then has the same bits as with many processes.
    Many processes exchange one message in the forward pass and one in the backward pass. torch's kernels for given
    statistics compute the rest.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, var, count = global_moments(x)
        unbiased = (var * (count / (count - 1))).to(weight.dtype)
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        backward = partial(torch.ops.aten.native_batch_norm_backward, grad, x, weight)
        if world_size() == 1:
            return *backward(None, None, mean, scale, True, ctx.eps, [True, True, True]), None
        grad_x, grad_weight, grad_bias = backward(mean, var, None, None, False, ctx.eps, [True, True, True])
        # The gradient through the statistics is affine in x. It needs the global batch's gradients by weight and bias.
        along, level = of_all_ranks(torch.stack([grad_weight, grad_bias])).sum(0) / ctx.count * (-weight * scale)
        grad_x.add_(F.batch_norm(x, mean, var, along, level, False, 0.0, ctx.eps))
        return grad_x, grad_weight, grad_bias, None


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (C,) and biased variance (C,), float64, and number of values per channel of the global batch.

    They are computed from the moments of single images. The float64 sums are exact: rounded to float32, mean and
    variance have the same bits for any number of ranks.
    """
    images, channels, *size = x.shape
    each = zip(*(torch.batch_norm_update_stats(image, None, None, 0.0) for image in x.split(1)), strict=True)
    means, variances = (torch.stack(moment).double() for moment in each)
    pixels = math.prod(size)
    total, count = means.sum(0) * pixels, images * pixels
    mean = total / count
    var = (variances + (means - mean).square()).mean(0)
    if world_size() == 1:
        return mean, var, count
    share = torch.cat([total, var, total.new_tensor([count])])
    totals, variances, counts = of_all_ranks(share).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = totals.sum(0) / count
    return mean, (counts * (variances + (totals / counts - mean).square())).sum(0) / count, count.item()


def _without_counter(module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Remove the counter that torch's batch norm adds to a state dict before loading."""
    tensors.pop(f"{prefix}{COUNTER}", None)


class BatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the global batch with a bias-corrected running average.

    Update t (from 1) has momentum ``m / (1 - (1 - m) ** (t + 1))``: the initial value counts as update 0, and early
    updates weigh as much as later ones (released code, m = 0.001). The state dict has the official keys, without a
    counter; ``bn_updates`` is saved beside it. Counter and momentum are tensors: torch.compile would recompile the
    network for every new value of a Python number.
    """

    # For the type checker: without this, the attributes could be modules or None.
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    updates: Tensor

    def __init__(self, num_features: int, momentum: float = 0.001, bias_correction: bool = True) -> None:
        super().__init__(num_features, momentum=1.0)  # torch's kernels give the batch's statistics, _update averages
        # torch's synchronised kernel needs this counter; the official state dict does not have it.
        self.register_buffer(COUNTER, torch.tensor(0), persistent=False)
        self.register_buffer("updates", torch.tensor(0), persistent=False)
        self.base_momentum, self.bias_correction = momentum, bias_correction
        self.register_load_state_dict_pre_hook(_without_counter)
        self.frozen = False  # see frozen_statistics

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape. Raises ChoiceError for fewer than two values per channel in training."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if x.numel() // x.shape[1] * world_size() < 2:
            raise ChoiceError(
                f"batch norm needs two values per channel in training, got {tuple(x.shape)}: raise the batch size"
            )
        if not x.is_cuda:
            y, mean, var = _BatchNormOfGlobalBatch.apply(x, self.weight, self.bias, self.eps)
        elif world_size() == 1:
            y, mean, var = self.of_one_process(x)
        else:
            y, mean, var = self.synchronised_by_torch(x)
        if not self.frozen:
            self._update(mean, var)
        return y

    def of_one_process(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, mean (C,) and unbiased variance (C,) of this process's batch, by torch's kernel."""
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        return y, mean, var

    def synchronised_by_torch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, mean (C,) and unbiased variance (C,) of the global batch, by torch's kernel for GPUs."""
        running = [self.running_mean, self.running_var]
        before = [statistic.clone() for statistic in running]
        try:
            y = super().forward(x)
            mean, var = (statistic.clone() for statistic in running)
        finally:  # a recomputation ends a block with an exception as soon as it has the last saved tensor
            for statistic, value in zip(running, before, strict=True):
                statistic.copy_(value)
        return y, mean, var

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor) -> None:
        self.updates += 1
        momentum = self.current_momentum().to(self.running_mean.dtype)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)

    def current_momentum(self) -> Tensor:
        """Weight () of the latest batch in the running average, float64."""
        m = torch.full((), self.base_momentum, dtype=torch.float64, device=self.updates.device)
        return m / (1 - (1 - m) ** (self.updates + 1)) if self.bias_correction else m


def batch_norms(model: nn.Module) -> Iterator[tuple[str, BatchNorm2d]]:
    """(name, module) of every batch norm of ``model``."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm2d))


def configure_batchnorm(model: nn.Module, momentum: float, bias_correction: bool) -> None:
    """Set the momentum of every batch norm's running average.

    Args:
        momentum: weight m of a new batch without correction, in (0, 1].
        bias_correction: update t has momentum ``m / (1 - (1 - m) ** (t + 1))``; False: always m.
    """
    for _, module in batch_norms(model):
        module.base_momentum, module.bias_correction = momentum, bias_correction


def bn_updates(model: nn.Module) -> dict[str, int]:
    """Number of updates by module name. A checkpoint needs it beside the state dict."""
    return {name: int(module.updates) for name, module in batch_norms(model)}


def set_bn_updates(model: nn.Module, updates: dict[str, int]) -> None:
    """Inverse of ``bn_updates``. Raises ValueError unless ``updates`` names exactly the model's batch norms."""
    modules = dict(batch_norms(model))
    if updates.keys() != modules.keys():
        differing = few(updates.keys() ^ modules.keys())
        raise ValueError(f"the update counts are not those of the network's batch norms; different: {differing}")
    for name, module in modules.items():
        module.updates.fill_(updates[name])


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Context in which train-mode forwards normalise by the batch but do not change the running statistics."""
    modules = [module for _, module in batch_norms(model)]
    for module in modules:
        module.frozen = True
    try:
        yield
    finally:
        for module in modules:
            module.frozen = False


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)`` without keeping its activations: the backward pass computes them again.

    The second computation does not change the running statistics.
    """
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(block)))


class PooledStatistics:
    """Exact mean and variance of every batch norm's input over all train-mode forwards within the context.

    Sums over the forwards have float64, so the result hardly depends on the batches. Only ``apply`` changes the running
    statistics. A batch norm without a forward (auxiliary head) keeps its statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modules = model, dict(batch_norms(model))
        self.moments: dict[str, Tensor] = {}  # (3, C) float64: count, sum, sum of squares

    def __enter__(self) -> "PooledStatistics":
        self.within = ExitStack()
        self.within.enter_context(frozen_statistics(self.model))
        for name, module in self.modules.items():
            self.within.enter_context(module.register_forward_pre_hook(partial(self._collect, name)))
        return self

    def _collect(self, name: str, module: BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if not module.training:
            return
        x = inputs[0].detach().float()
        mean, var = (moment.double() for moment in torch.batch_norm_update_stats(x, None, None, 0.0))
        count = torch.full_like(mean, x.numel() / len(mean))
        moments = torch.stack([count, count * mean, count * (var + mean.square())])
        self.moments[name] = self.moments[name] + moments if name in self.moments else moments

    def __exit__(self, *error: object) -> None:
        self.within.close()

    def apply(self) -> None:
        """Write the mean and unbiased variance over all processes into the running statistics."""
        for name, module in self.modules.items():
            moments = self.moments.get(name, module.running_mean.new_zeros(3, module.num_features, dtype=torch.float64))
            if world_size() > 1:
                dist.all_reduce(moments)
            count, total, squares = moments
            if count[0] > 0:
                mean = total / count
                module.running_mean.copy_(mean)
                module.running_var.copy_((squares / count - mean.square()) * count / (count - 1))
