"""Softmax of the logits for the pyramid curriculum, computed in strips of rows."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 16  # rows, so that a strip fits roughly into a core's cache


class SoftmaxStrips(torch.autograd.Function):
    """All values that the pyramid needs from P = softmax(Z), computed in strips: P is never stored as a whole.

    The backward pass computes P again. Its only large tensor is the gradient.
    """

    @staticmethod
    def forward(ctx: Any, Z: Tensor, box_size: Sequence[int], pool_probs: bool) -> tuple[Tensor, ...]:
        """Z are (N, C, H, W) logits. All outputs but the label carry the gradient.

        Returns:
            ce (N, H, W), minus the log of the largest P; label (N, H, W) int64, the class of the largest P, the first
            one of equals; P averaged over each image (N, C); and for each b of ``box_size`` the b x b averages
            (N, C, H // b, W // b) of Z, or of P with ``pool_probs``.
        """
        (N, C, H, W), last = Z.shape, Z.shape[1] - 1
        order = torch.arange(last, -1, -1, dtype=Z.dtype, device=Z.device).view(1, -1, 1, 1)
        ce, label, P_sum = Z.new_empty(N, H, W), Z.new_empty(N, H, W, dtype=torch.int64), Z.new_zeros(N, C)
        if pool_probs:
            pooled = [Z.new_empty(N, C, H // b, W // b) for b in box_size]
        else:
            pooled = [F.avg_pool2d(Z, b) for b in box_size]
        of_probs = list(zip(box_size, pooled, strict=True)) if pool_probs else []
        for rows in _strips(H, box_size):
            z = Z[:, :, rows]
            highest = z.amax(1, keepdim=True)
            # 1 at the highest logit, otherwise 0; with ``order`` this is a faster argmax on a CPU.
            is_highest = torch.eq(z, highest, out=torch.empty_like(z))
            label[:, rows] = last - is_highest.mul_(order).amax(1).long()
            p, total = _softmax(z, highest)
            ce[:, rows] = total.log_().squeeze(1)
            P_sum += p.sum((2, 3))
            for b, average in of_probs:
                if p.shape[2] >= b:
                    start = rows.start // b
                    average[:, :, start : start + p.shape[2] // b] = F.avg_pool2d(p, b)
        ctx.save_for_backward(Z, label)
        ctx.box_size, ctx.pool_probs = box_size, pool_probs
        ctx.mark_non_differentiable(label)
        return ce, label, P_sum / (H * W), *pooled

    @staticmethod
    def backward(ctx: Any, g_ce: Tensor, _: Tensor, g_mean: Tensor, *g_pooled: Tensor) -> tuple[Tensor, None, None]:
        Z, label = ctx.saved_tensors
        H, W = Z.shape[2:]
        grad = torch.empty_like(Z)
        for rows in _strips(H, ctx.box_size):
            z = Z[:, :, rows]
            p, _ = _softmax(z, z.amax(1, keepdim=True))
            g_p = (g_mean / (H * W))[:, :, None, None]
            if ctx.pool_probs:
                g_p = g_p.expand_as(p).clone()
                for b, g in zip(ctx.box_size, g_pooled, strict=True):
                    _add_to_squares(g_p, g[:, :, rows.start // b : (rows.start + p.shape[2]) // b], b)
            inner = (p * g_p).sum(1, keepdim=True) - g_ce[:, None, rows]  # softmax backward; p - onehot of the CE
            part = p.mul_(g_p - inner).scatter_add_(1, label[:, None, rows], -g_ce[:, None, rows])
            grad[:, :, rows] = part
        if not ctx.pool_probs:
            for b, g in zip(ctx.box_size, g_pooled, strict=True):
                _add_to_squares(grad, g, b)
        return grad, None, None


def _strips(height: int, box_size: Sequence[int]) -> list[slice]:
    """Strips of rows. No square of ``box_size`` lies in two strips."""
    unit = math.lcm(*box_size)
    step = unit * max(1, STRIP // unit)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def _softmax(z: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(z) over the classes, and the sum of exp(z - highest). Its log is the CE with the highest class."""
    p = (z - highest).exp_()
    total = p.sum(1, keepdim=True)
    return p.div_(total), total


def _add_to_squares(target: Tensor, g: Tensor, b: int) -> None:
    """Add the gradient of b x b averages to ``target`` (N, C, H, W), in place."""
    h, w = g.shape[2:]
    squares = target[:, :, : h * b, : w * b].unflatten(3, (w, b)).unflatten(2, (h, b))
    squares += (g / b**2)[:, :, :, None, :, None]
