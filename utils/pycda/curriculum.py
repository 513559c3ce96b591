"""PyCDA's pyramid curriculum (Lian et al., ICCV 2019, section 3): image, squares, pixels.

The network's own predictions on the unlabelled target images are the labels:

    bottom  pixels   argmax of P if max P > threshold                   cross-entropy with Z
    middle  squares  argmax of the b x b average if it is confident     cross-entropy with the average
    top     image    a class histogram                                  prediction averaged over the image
    (+)     spatial  a class histogram per position                     pooled prediction

Z are the logits at the crop size, P = softmax(Z). Where paper and released code differ, an argument chooses one; the
default is the released code.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .softmax_strips import SoftmaxStrips

EPS = 1e-6  # inside the logarithms of the binary cross-entropy (released code); lost in half precision


class PseudoLabels(NamedTuple):
    """One layer of the pyramid. All three are (N, h, w)."""

    ce: Tensor  # cross-entropy with the network's own label, carries the gradient
    label: Tensor  # argmax class, int64
    mask: Tensor  # bool, True if labelled: confident and valid


def square(b: int) -> str:
    """Name of the layer of b x b squares."""
    return f"square_{b}"


def layer_names(box_size: Sequence[int], use_pixels: bool) -> list[str]:
    """Names of the pyramid's layers: "pixel", then the squares in the order of ``box_size``."""
    return [*(["pixel"] if use_pixels else []), *map(square, box_size)]


def at_least_float32(values: Tensor) -> Tensor:
    """``values``, half precision converted to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def binary_cross_entropy(p: Tensor, t: Tensor) -> Tensor:
    """``-(t log(p + eps) + (1 - t) log(1 - p + eps))``, elementwise, for probabilities (released code)."""
    return -(t * torch.log(p + EPS) + (1 - t) * torch.log(1 - p + EPS))


class PyramidCurriculum(nn.Module):
    """Loss of one target batch.

    Args:
        class_prior: (C,) source class histogram that sums to 1; may be None when ``image_target`` is "uniform".
        box_size: sides of the squares in pixels; empty disables the middle layer.
        conf_threshold: a prediction becomes a label if its probability is above this value.
        class_thresholds: gives each pixel or square its own threshold instead, as ``ClassThresholds`` does (ours).
        merge_1x1: one mean over all pixels and squares (paper), instead of the sum of their two means.
        lambda_pseudo, lambda_balance, lambda_eq: weights of pixels and squares, image term, spatial term.
        spatial_prior: (C, H, W) source class histogram per position, H x W the crop size; needed when lambda_eq > 0.
        image_target: "uniform" is 1/C, the effect of the released code; "source" is ``class_prior`` (paper).
        image_loss: "bce" per class on the batch average (released) or "ce" per image, averaged over images (paper).
        region_pool: average the "logits" (released) or the "probs" (paper) over a square.
        drop_saturated: entries with a loss of exactly 0 do not count in the means (released); False: they do (paper).
        use_pixels: False disables the bottom layer (the paper's ablation).
        all_reduce: sum over processes with identity backward, for means over the global batch; None: one process.
    """

    class_prior: Tensor | None

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
        class_thresholds: nn.Module | None = None,
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
        self.drop_saturated, self.use_pixels = drop_saturated, use_pixels
        self.class_thresholds = class_thresholds
        self.all_reduce = all_reduce or (lambda tensor: tensor)
        prior = None if class_prior is None else torch.as_tensor(class_prior, dtype=torch.float64)
        if prior is not None and prior.ndim != 1:
            raise ValueError(f"class_prior must be (C,), got {tuple(prior.shape)}: flatten it")
        self.register_buffer("class_prior", prior, persistent=False)  # computed again from its file or the labels
        self._pool_spatial_prior(spatial_prior)

    def forward(self, logits: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Curriculum losses of one target batch.

        Args:
            logits: (N, C, H, W), any float type, at the crop size; half precision is computed in float32.
            valid: (N, H, W) bool, False where the crop was padded; None means all valid.

        Returns:
            Scalars: ``total``, ``pixel``, ``region``, ``image`` and, if weighted, ``spatial``. With ``merge_1x1``
            ``region`` is the mean over squares *and* pixels. A term without any labelled entry is 0.
        """
        return self.losses_and_labels(logits, valid)[0]

    def losses_and_labels(
        self, logits: Tensor, valid: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, PseudoLabels]]:
        """The losses of ``forward``, and the layers of the pyramid as ``pseudo_labels`` returns them."""
        Z = at_least_float32(logits)
        self._check_shapes(Z, valid)
        layers, P_mean, pooled = self._pyramid(Z, valid)
        bottom = [layers["pixel"]] if self.use_pixels else []
        squares = [layers[square(b)] for b in self.box_size]
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
        return {"total": total, **losses}, layers

    def pseudo_labels(self, Z: Tensor, valid: Tensor | None = None) -> dict[str, PseudoLabels]:
        """Layers of the pyramid by name, see ``layer_names``; Z and valid as in ``forward``."""
        return self._pyramid(Z, valid)[0]

    def _pyramid(self, Z: Tensor, valid: Tensor | None) -> tuple[dict[str, PseudoLabels], Tensor, Sequence[Tensor]]:
        """Layers by name, P averaged over each image (N, C), and the averages of the squares, by ``box_size``."""
        if valid is None:
            valid = Z.new_ones(Z.shape[0], *Z.shape[2:], dtype=torch.bool)
        # P = softmax(Z) over the classes is never stored as a whole. The results are
        # ce = -log max P and label = argmax P, (N, H, W): the bottom layer;
        # P_mean (N, C): P averaged over each image's pixels, the top layer;
        # pooled: for every b the b x b averages of Z, or of P with region_pool "probs", (N, C, H // b, W // b).
        ce, label, P_mean, *pooled = SoftmaxStrips.apply(Z, self.box_size, self.region_pool == "probs")
        layers = {"pixel": self._labels("pixel", ce, label, valid)} if self.use_pixels else {}
        for b, average in zip(self.box_size, pooled, strict=True):
            layers[square(b)] = self._square_labels(average, valid, b)
        return layers, P_mean, pooled

    def _labels(self, layer: str, ce: Tensor, label: Tensor, valid: Tensor) -> PseudoLabels:
        """``ce`` is minus the log-probability of ``label``, the most probable class."""
        confidence, threshold = ce.detach().neg().exp(), self.conf_threshold
        if self.class_thresholds is not None:
            threshold = self.class_thresholds(layer, confidence, label, valid)
        return PseudoLabels(ce, label, (confidence > threshold) & valid)

    def _square_labels(self, average: Tensor, valid: Tensor, b: int) -> PseudoLabels:
        if self.region_pool == "logits":
            log_prob = F.log_softmax(average, dim=1)
        else:
            log_prob = average.clamp_min(torch.finfo(average.dtype).tiny).log()
        best, label = log_prob.max(dim=1)
        any_valid = F.max_pool2d(valid.float().unsqueeze(1), b).squeeze(1) > 0  # void if all is padding
        return self._labels(square(b), -best, label, any_valid)

    def _mean_ce(self, layers: Sequence[PseudoLabels], zero: Tensor) -> Tensor:
        """Mean over the labelled entries of all ``layers`` and processes; ``zero`` if nothing is labelled."""
        numerator = count = zero
        for ce, _, mask in layers:
            if self.drop_saturated:
                mask = mask & (ce.detach() != 0)
            numerator = numerator + torch.where(mask, ce, 0).sum()
            count = count + mask.sum()
        return self.all_reduce(numerator) / self.all_reduce(count).clamp_min(1)

    def _image_loss(self, per_image: Tensor) -> Tensor:
        """Top layer: P averaged over each image (N, C), with padding (released code), compared with a histogram."""
        N, C = per_image.shape
        prior = self.class_prior if self.image_target == "source" else None
        target = per_image.new_full((C,), 1 / C) if prior is None else prior.to(per_image)
        images = self.all_reduce(per_image.new_full((), N))
        if self.image_loss == "bce":
            return binary_cross_entropy(self.all_reduce(per_image.sum(0)) / images, target).mean()
        ce = -(target * per_image.clamp_min(torch.finfo(per_image.dtype).tiny).log()).sum(1)
        return self.all_reduce(ce.sum()) / images

    def _spatial_loss(self, Z: Tensor, pooled_logits: Sequence[Tensor], squares: Sequence[PseudoLabels]) -> Tensor:
        """The batch's pooled prediction compared with the pooled prior. Each labelled square counts once."""
        images = self.all_reduce(Z.new_full((), len(Z)))
        numerator = count = Z.new_zeros(())
        for b, logits, labels in zip(self.box_size, pooled_logits, squares, strict=True):
            prior = getattr(self, f"spatial_prior_{b}").to(Z)
            mean_logits = self.all_reduce(logits.sum(0)) / images
            loss = binary_cross_entropy(mean_logits.softmax(0), prior).mean(0)
            times = self.all_reduce(labels.mask.sum(0).to(Z)) * (prior.sum(0) > 0)
            if self.drop_saturated:
                times = times * (loss.detach() != 0)
            numerator = numerator + (times * loss).sum()
            count = count + times.sum()
        return numerator / count.clamp_min(1)

    def _pool_spatial_prior(self, spatial_prior: Tensor | None) -> None:
        """Normalise the prior over the classes and pool it by each square size. Positions without labels stay 0."""
        self.spatial_size: tuple[int, ...] | None = None
        if spatial_prior is None:
            return
        prior = torch.as_tensor(spatial_prior, dtype=torch.float64)
        if prior.ndim != 3:
            raise ValueError(f"spatial_prior must be (C, H, W), got {tuple(prior.shape)}")
        self.spatial_size = tuple(prior.shape)
        total = prior.sum(0, keepdim=True)
        prior = torch.where(total > 0, prior / total.clamp_min(torch.finfo(prior.dtype).tiny), 0)
        for b in self.box_size:
            self.register_buffer(f"spatial_prior_{b}", F.avg_pool2d(prior, b), persistent=False)

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
