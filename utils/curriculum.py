"""PyCDA's pyramid curriculum (Lian et al., ICCV 2019, section 3): image, squares, pixels.

The network's own predictions on the unlabelled target images are the labels:

    bottom  pixels   argmax of P where max P > threshold               cross-entropy with Z
    middle  squares  argmax of the b x b average where it is confident  cross-entropy with the average
    top     image    a class histogram                                  prediction averaged over the image
    (+)     spatial  a class histogram per position                     pooled prediction

Z are the logits at the crop size, P = softmax(Z). The paper and the released code differ in six choices; each is an
argument whose default is the released code. Only torch is imported, so that this file can be lifted out alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # inside the logarithms of the binary cross-entropy, released code; vanishes in half precision


class PseudoLabels(NamedTuple):
    """One layer of the pyramid. All three are (N, h, w)."""

    ce: Tensor  # cross-entropy with the network's own label, float32, carries the gradient
    label: Tensor  # argmax class, int64
    mask: Tensor  # bool: confident and valid, that is, labelled


def binary_cross_entropy(p: Tensor, t: Tensor) -> Tensor:
    """``-(t log(p + eps) + (1 - t) log(1 - p + eps))``, elementwise, for probabilities (released code)."""
    return -(t * torch.log(p + EPS) + (1 - t) * torch.log(1 - p + EPS))


def _count_labels(labels: PseudoLabels, num_classes: int) -> tuple[Tensor, int]:
    """Labelled entries of each class (C,) int64, and the number of all entries."""
    mask = labels.mask.flatten().long()
    return mask.new_zeros(num_classes).index_add_(0, labels.label.flatten(), mask), mask.numel()


class PyramidCurriculum(nn.Module):
    """Loss of one target batch.

    Args:
        class_prior: (C,) source class histogram that sums to 1; may be None when ``image_target`` is "uniform".
        box_size: sides of the squares in pixels; empty switches the middle layer off.
        conf_threshold: a prediction is a label where its probability is above this.
        merge_1x1: one mean over pixels and squares together (paper) instead of one mean each, added.
        lambda_pseudo, lambda_balance, lambda_eq: weights of pixels and squares, of the image term, of the spatial term.
        spatial_prior: (C, H, W) source class histogram per position, H x W the crop size; needed when lambda_eq > 0.
        image_target: "uniform" is the 1/C that the released code amounts to; "source" the histogram (paper).
        image_loss: "bce" per class on the batch average (released) or "ce" per image, averaged over images (paper).
        region_pool: average the "logits" (released) or the "probs" (paper) over a square.
        drop_saturated: leave entries whose loss is exactly 0 out of the means (released) or count them (paper).
        use_pixels: False switches the bottom layer off (the paper's ablation).
        all_reduce: sum over processes with identity backward; all means are then over the global batch. None: one process.

    Attributes:
        label_counts: of the last batch, by layer ("pixel", "square_4", ...): the labelled entries of each class (C,),
            int64, and the number of all entries.
    """

    def __init__(
        self,
        class_prior: Tensor | None,
        *,
        box_size: Sequence[int] = (4, 8),
        conf_threshold: float = 0.5,
        merge_1x1: bool = False,
        lambda_pseudo: float = 1.0,
        lambda_balance: float = 1.0,
        lambda_eq: float = 0.0,
        spatial_prior: Tensor | None = None,
        image_target: str = "uniform",
        image_loss: str = "bce",
        region_pool: str = "logits",
        drop_saturated: bool = True,
        use_pixels: bool = True,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("image_target", image_target, ("uniform", "source")),
            ("image_loss", image_loss, ("bce", "ce")),
            ("region_pool", region_pool, ("logits", "probs")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        if image_target == "source" and class_prior is None:
            raise ValueError("image_target='source' needs class_prior, the (C,) class histogram of the source labels")
        if lambda_eq and spatial_prior is None:
            raise ValueError(f"lambda_eq={lambda_eq} needs spatial_prior, a (C, H, W) class histogram per position")
        self.box_size, self.conf_threshold, self.merge_1x1 = tuple(box_size), conf_threshold, merge_1x1
        self.lambda_pseudo, self.lambda_balance, self.lambda_eq = lambda_pseudo, lambda_balance, lambda_eq or 0.0
        self.image_target, self.image_loss, self.region_pool = image_target, image_loss, region_pool
        self.drop_saturated, self.use_pixels, self.all_reduce = drop_saturated, use_pixels, all_reduce or (lambda tensor: tensor)
        prior = None if class_prior is None else torch.as_tensor(class_prior, dtype=torch.float32)
        if prior is not None and prior.ndim != 1:
            raise ValueError(f"class_prior must be (C,), got {tuple(prior.shape)}: a column would broadcast silently")
        self.register_buffer("class_prior", prior)
        self._pool_spatial_prior(spatial_prior)
        self.label_counts: dict[str, tuple[Tensor, int]] = {}

    def _pool_spatial_prior(self, spatial_prior: Tensor | None) -> None:
        """Normalise over the classes and pool by each square size, once. A position never labelled stays 0."""
        self.spatial_size = None
        if spatial_prior is None:
            return
        prior = torch.as_tensor(spatial_prior, dtype=torch.float32)
        if prior.ndim != 3:
            raise ValueError(f"spatial_prior must be (C, H, W), got {tuple(prior.shape)}")
        self.spatial_size = tuple(prior.shape)
        total = prior.sum(0, keepdim=True)
        prior = torch.where(total > 0, prior / total.clamp_min(torch.finfo(prior.dtype).tiny), 0)
        for b in self.box_size:
            self.register_buffer(f"spatial_prior_{b}", F.avg_pool2d(prior, b))

    def forward(self, logits: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Curriculum losses of one target batch.

        Args:
            logits: (N, C, H, W), any float type (computed in float32), at the crop size.
            valid: (N, H, W) bool, False where the crop was padded; None means all valid.

        Returns:
            Scalars: ``total``, ``pixel``, ``region``, ``image`` and, with a weight, ``spatial``. With ``merge_1x1``
            ``region`` is the mean over squares *and* pixels. A term without any labelled entry is 0.
        """
        Z = logits.float()
        self._check_shapes(Z, valid)
        layers, P_mean, pooled = self._pyramid(Z, valid)
        self.label_counts = {name: _count_labels(labels, Z.shape[1]) for name, labels in layers.items()}
        bottom = [layers["pixel"]] if self.use_pixels else []
        squares = [layers[f"square_{b}"] for b in self.box_size]
        losses = {
            "pixel": self._mean_ce(bottom, Z.new_zeros(())),
            "region": self._mean_ce(squares + bottom if self.merge_1x1 else squares, Z.new_zeros(())),
            "image": self._image_loss(P_mean),
        }
        total = self.lambda_balance * losses["image"] + self.lambda_pseudo * losses["region"]
        if not self.merge_1x1:
            total = total + self.lambda_pseudo * losses["pixel"]
        if self.lambda_eq:
            pooled_logits = pooled if self.region_pool == "logits" else [F.avg_pool2d(Z, b) for b in self.box_size]
            losses["spatial"] = self._spatial_loss(Z, pooled_logits, squares)
            total = total + self.lambda_eq * losses["spatial"]
        return {"total": total, **losses}

    def pseudo_labels(self, Z: Tensor, valid: Tensor | None = None) -> dict[str, PseudoLabels]:
        """Layers of the pyramid by name ("pixel", "square_4", ...), of logits and valid as in ``forward``, in float32."""
        return self._pyramid(Z, valid)[0]

    def _pyramid(self, Z: Tensor, valid: Tensor | None) -> tuple[dict[str, PseudoLabels], Tensor, Sequence[Tensor]]:
        """Layers by name, P averaged over each image (N, C), and what the squares average, by ``box_size``."""
        if valid is None:
            valid = Z.new_ones(Z.shape[0], *Z.shape[2:], dtype=torch.bool)
        ce, label, P_mean, *pooled = SoftmaxStrips.apply(Z, self.box_size, self.region_pool == "probs")
        layers = {"pixel": self._labels(ce, label, valid)} if self.use_pixels else {}
        squares = zip(self.box_size, pooled, strict=True)
        return layers | {f"square_{b}": self._square_labels(average, valid, b) for b, average in squares}, P_mean, pooled

    def _check_shapes(self, Z: Tensor, valid: Tensor | None) -> None:
        N, C, H, W = Z.shape
        if valid is not None and valid.shape != (N, H, W):
            raise ValueError(f"valid is {tuple(valid.shape)}, the logits {tuple(Z.shape)} need {(N, H, W)}")
        if self.class_prior is not None and self.class_prior.shape != (C,):
            raise ValueError(f"class_prior is {tuple(self.class_prior.shape)}, the logits have {C} classes")
        if self.lambda_eq and self.spatial_size != (C, H, W):
            raise ValueError(f"spatial_prior is {self.spatial_size}, the logits need {(C, H, W)}: same crop size")
        if self.box_size and max(self.box_size) > min(H, W):
            raise ValueError(f"box_size {self.box_size} does not fit in a crop of {W}x{H} (W x H)")

    def _labels(self, ce: Tensor, label: Tensor, valid: Tensor) -> PseudoLabels:
        """``ce`` is minus the log-probability of ``label``, the most probable class."""
        return PseudoLabels(ce, label, (ce.detach().neg().exp() > self.conf_threshold) & valid)

    def _square_labels(self, average: Tensor, valid: Tensor, b: int) -> PseudoLabels:
        if self.region_pool == "logits":
            log_prob = F.log_softmax(average, dim=1)
        else:
            log_prob = average.clamp_min(torch.finfo(average.dtype).tiny).log()
        best, label = log_prob.max(dim=1)
        any_valid = F.max_pool2d(valid.float().unsqueeze(1), b).squeeze(1) > 0  # void only if all of it is padding
        return self._labels(-best, label, any_valid)

    def _mean_ce(self, layers: Sequence[PseudoLabels], zero: Tensor) -> Tensor:
        """Mean over the labelled entries of all ``layers`` and processes; ``zero`` where nothing is labelled."""
        numerator = count = zero
        for ce, _, mask in layers:
            if self.drop_saturated:
                mask = mask & (ce.detach() != 0)
            numerator = numerator + torch.where(mask, ce, 0).sum()
            count = count + mask.sum()
        return self.all_reduce(numerator) / self.all_reduce(count).clamp_min(1)

    def _image_loss(self, per_image: Tensor) -> Tensor:
        """Top layer: the prediction averaged over all pixels (padding too, released code) (N, C) against a histogram."""
        N, C = per_image.shape
        target = self.class_prior if self.image_target == "source" else per_image.new_full((C,), 1 / C)
        images = self.all_reduce(per_image.new_tensor(float(N)))
        if self.image_loss == "bce":
            return binary_cross_entropy(self.all_reduce(per_image.sum(0)) / images, target).mean()
        ce = -(target * per_image.clamp_min(torch.finfo(per_image.dtype).tiny).log()).sum(1)
        return self.all_reduce(ce.sum()) / images

    def _spatial_loss(self, Z: Tensor, pooled_logits: Sequence[Tensor], squares: Sequence[PseudoLabels]) -> Tensor:
        """Pooled prediction of the batch against the pooled prior, counted once per labelled square of an image."""
        images = self.all_reduce(Z.new_tensor(float(len(Z))))
        numerator = count = Z.new_zeros(())
        for b, logits, labels in zip(self.box_size, pooled_logits, squares, strict=True):
            prior = getattr(self, f"spatial_prior_{b}")
            mean_logits = self.all_reduce(logits.sum(0)) / images
            loss = binary_cross_entropy(mean_logits.softmax(0), prior).mean(0)
            times = self.all_reduce(labels.mask.sum(0).float()) * (prior.sum(0) > 0)
            if self.drop_saturated:
                times = times * (loss.detach() != 0)
            numerator = numerator + (times * loss).sum()
            count = count + times.sum()
        return numerator / count.clamp_min(1)


STRIP = 16  # rows at a time, about what a core's cache holds


class SoftmaxStrips(torch.autograd.Function):
    """What the pyramid needs of P = softmax(Z), strip by strip of rows, so that P is never held as a whole.

    The backward pass computes it again: the only large tensor is the gradient.
    """

    @staticmethod
    def forward(ctx, Z: Tensor, box_size: Sequence[int], pool_probs: bool) -> tuple[Tensor, ...]:
        """(N, C, H, W) logits -> ce (N, H, W), minus the log of the largest P; label (N, H, W) int64, its class, the first of
        several; P averaged over the image (N, C); and for each b of ``box_size`` the b x b averages (N, C, H // b, W // b)
        of Z, or of P with ``pool_probs``. All but the label carry the gradient.
        """
        (N, C, H, W), last = Z.shape, Z.shape[1] - 1
        order = torch.arange(last, -1, -1, dtype=Z.dtype, device=Z.device).view(1, -1, 1, 1)
        ce, label, P_sum = Z.new_empty(N, H, W), Z.new_empty(N, H, W, dtype=torch.int64), Z.new_zeros(N, C)
        pooled = [Z.new_empty(N, C, H // b, W // b) for b in box_size] if pool_probs else [F.avg_pool2d(Z, b) for b in box_size]
        for rows in _strips(H, box_size):
            z = Z[:, :, rows]
            highest = z.amax(1, keepdim=True)
            is_highest = torch.eq(z, highest, out=torch.empty_like(z))  # 1 or 0; with ``order``, a faster argmax on a CPU
            label[:, rows] = last - is_highest.mul_(order).amax(1).long()
            p, total = _softmax(z, highest)
            ce[:, rows] = total.log_().squeeze(1)
            P_sum += p.sum((2, 3))
            for b, average in zip(box_size if pool_probs else (), pooled):
                if p.shape[2] >= b:
                    start = rows.start // b
                    average[:, :, start : start + p.shape[2] // b] = F.avg_pool2d(p, b)
        ctx.save_for_backward(Z, label)
        ctx.box_size, ctx.pool_probs = box_size, pool_probs
        ctx.mark_non_differentiable(label)
        return ce, label, P_sum / (H * W), *pooled

    @staticmethod
    def backward(ctx, g_ce: Tensor, _: Tensor, g_mean: Tensor, *g_pooled: Tensor) -> tuple[Tensor, None, None]:
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
            inner = (p * g_p).sum(1, keepdim=True) - g_ce[:, None, rows]  # softmax backward, and p - onehot of the CE
            part = p.mul_(g_p - inner).scatter_add_(1, label[:, None, rows], -g_ce[:, None, rows])
            grad[:, :, rows] = part
        for b, g in zip(() if ctx.pool_probs else ctx.box_size, g_pooled):
            _add_to_squares(grad, g, b)
        return grad, None, None


def _strips(height: int, box_size: Sequence[int]) -> list[slice]:
    """Rows in strips that no square of ``box_size`` crosses."""
    unit = math.lcm(*box_size)
    step = unit * max(1, STRIP // unit)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def _softmax(z: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(z) over dimension 1, and the sum of exp(z - highest), whose log is the cross-entropy with the highest class."""
    p = (z - highest).exp_()
    total = p.sum(1, keepdim=True)
    return p.div_(total), total


def _add_to_squares(target: Tensor, g: Tensor, b: int) -> None:
    """Add the gradient of b x b averages to ``target`` (N, C, H, W), in place."""
    h, w = g.shape[2:]
    squares = target[:, :, : h * b, : w * b].unflatten(3, (w, b)).unflatten(2, (h, b))
    squares += (g / b**2)[:, :, :, None, :, None]
