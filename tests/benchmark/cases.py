"""The work that ``tests/benchmark`` times: our code, and the straightforward way to do the same.

The straightforward way follows the description of the released code: float32 logits, a softmax for each use, boolean
indexing, one masked assignment per class, logits at the label's size in numpy before argmax, decoding and resizing of
the whole picture per sample, pooling of the prior in every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dataset import priors
from dataset.cache import PictureCache
from dataset.folders import Sample
from dataset.labels import id_lookup
from dataset.program import usable_cores
from dataset.reading import look_up, read_pair
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, JointTransform
from models import build_segmentor
from tests.upsampled import classes_at
from utils.metrics import ConfusionMatrix
from utils.pycda.curriculum import EPS, PyramidCurriculum
from utils.scoring.upsampling import RELEASED, View

C = 19
ROUNDED = 1e-5  # share of the pixels with two highest logits that may differ only by rounding
RAW_IDS = {raw: train for raw, train in enumerate(id_lookup("cityscapes").tolist()) if train != 255}


@dataclass(frozen=True)
class Case:
    """Two functions that do the same work; ``same`` compares their results.

    Attributes:
        dtype: of the matrix products that limit the speed of ``ours``; None: only the time is measured.
    """

    ours: Callable
    theirs: Callable
    same: Callable
    repeats: int = 31  # a shared machine is sometimes slow
    dtype: torch.dtype | None = None


def bce(p: Tensor, t: Tensor) -> Tensor:
    return -(t * torch.log(p + EPS) + (1 - t) * torch.log(1 - p + EPS))


def plain_curriculum(logits: Tensor, valid: Tensor, prior: Tensor | None, box_size: Sequence[int]) -> Tensor:
    """The released recipe, term by term, without shared results."""
    confidence, label = F.softmax(logits, dim=1).max(1)
    loss = F.cross_entropy(logits, label, reduction="none")[(confidence > 0.5) & valid]
    total = loss[loss != 0].mean()
    squares, spatial = [], []
    for b in box_size:
        pooled = F.avg_pool2d(logits, b)
        confidence, label = F.softmax(pooled, dim=1).max(1)
        mask = (confidence > 0.5) & (F.max_pool2d(valid.float()[:, None], b)[:, 0] > 0)
        squares.append(F.cross_entropy(pooled, label, reduction="none")[mask])
        if prior is not None:
            target = F.avg_pool2d(prior / prior.sum(0, keepdim=True), b)
            average = F.softmax(F.avg_pool2d(logits, b).mean(0, keepdim=True), dim=1)[0]
            terms = bce(average, target).mean(0)
            spatial.append(terms.expand(len(logits), *terms.shape)[mask])
    squares = torch.cat(squares)
    total = total + squares[squares != 0].mean()
    total = total + bce(F.softmax(logits, dim=1).mean((0, 2, 3)), logits.new_full((C,), 1 / C)).mean()
    if prior is not None:
        spatial = torch.cat(spatial)
        total = total + spatial[spatial != 0].mean()
    return total


def curriculum_case(shape: tuple[int, ...], spatial: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    small = 6 * torch.randn(shape[0], C, shape[1] // 8, shape[2] // 8, generator=generator)
    logits = F.interpolate(small, shape[1:], mode="bilinear").requires_grad_()
    valid = torch.ones(shape, dtype=torch.bool)
    prior = torch.rand(C, *shape[1:], generator=generator) if spatial else None
    ours = PyramidCurriculum(None, lambda_eq=1.0 if spatial else 0.0, spatial_prior=prior)

    def step(loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        logits.grad = None
        total = loss()
        total.backward()
        return total.detach(), logits.grad

    def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
        return torch.allclose(a[0], b[0], rtol=2e-5) and (a[1] - b[1]).norm() <= 2e-5 * b[1].norm()

    plain = partial(plain_curriculum, logits, valid, prior, (4, 8))
    return Case(lambda: step(lambda: ours(logits, valid)["total"]), lambda: step(plain), same)


def write_pair(folder: Path, size: tuple[int, int], count: int = 1) -> list[Sample]:
    """Write pictures with as much detail as photographs, and labels with shapes."""
    rng, samples = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(int)
        pixels += rng.integers(-8, 8, pixels.shape)
        ids = rng.choice(list(RAW_IDS), (size[1] // 40 + 1, size[0] // 40 + 1)).astype(np.uint8)
        label = np.kron(ids, np.ones((40, 40), np.uint8))[: size[1], : size[0]]
        paths = folder / f"image{i}.png", folder / f"label{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[0])
        Image.fromarray(label).save(paths[1])
        samples.append(Sample(str(i), *paths))
    return samples


def plain_labels(raw: np.ndarray) -> np.ndarray:
    """One masked assignment per class, into float32."""
    labels = np.full(raw.shape, 255, np.float32)
    for raw_id, train_id in RAW_IDS.items():
        labels[raw == raw_id] = train_id
    return labels


def sample_case(
    folder: Path, size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int], cached: bool = False
) -> Case:
    (sample,) = write_pair(folder, size)
    transform = JointTransform(size=resized, crop=crop)
    read = PictureCache(folder / "cache", transform.fixed_size) if cached else read_pair

    def ours() -> tuple[Tensor, Tensor]:
        image, label, _ = transform(*read(sample, "gtav"), np.random.default_rng(0))
        return image, label

    def theirs() -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(0)
        image = Image.open(sample.image).convert("RGB").resize(resized, Image.Resampling.BILINEAR)
        label = Image.open(sample.label).resize(resized, Image.Resampling.NEAREST)
        pixels, ids = np.asarray(image, np.float32) / 255, plain_labels(np.asarray(label, np.float32))
        pixels = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        left, top = (int(rng.integers(0, have - want + 1)) for have, want in zip(resized, crop, strict=True))
        window = slice(top, top + crop[1]), slice(left, left + crop[0])
        return torch.from_numpy(pixels[window].transpose(2, 0, 1).copy()), torch.from_numpy(ids[window].copy()).long()

    return Case(ours, theirs, lambda a, b: torch.allclose(a[0], b[0], atol=1e-5) and torch.equal(a[1], b[1]))


def decode_case(folder: Path, size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]) -> Case:
    """The lower limit for a sample: only decoding its two files."""
    case = sample_case(folder, size, resized, crop)

    def decode() -> None:
        Image.open(folder / "image0.png").load()
        Image.open(folder / "label0.png").load()

    return Case(case.ours, decode, lambda a, b: True)


def evaluation_case(mode: str) -> Case:
    """From logits at stride 8 of a 1024x512 input to the confusion matrix at the size of a Cityscapes label."""
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(1, C, 64, 128, generator=generator)
    input_size, size = (512, 1024), (1024, 2048)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 34, (1, *size), dtype=np.uint8))
    table = id_lookup("cityscapes")

    def ours() -> np.ndarray:
        matrix = ConfusionMatrix(C)
        label = torch.from_numpy(look_up(raw[0].numpy(), table))
        matrix.update(label[None], classes_at([View(logits, input_size)], size, mode))
        return matrix.counts.numpy()

    def theirs() -> np.ndarray:
        label = np.full(raw.shape, 255, np.int64)
        for raw_id in range(35):
            label[raw.numpy() == raw_id] = RAW_IDS.get(raw_id, 255)
        if mode == RELEASED:
            seen = F.interpolate(logits, input_size, mode="bilinear", align_corners=False)
            whole = F.interpolate(seen, size, mode="bilinear", align_corners=True)
        else:
            whole = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        prediction = whole.numpy().transpose(0, 2, 3, 1).argmax(3)
        mask = (label >= 0) & (label < C)
        return np.bincount(C * label[mask] + prediction[mask], minlength=C**2).reshape(C, C)

    return Case(ours, theirs, lambda a, b: np.abs(a - b).sum() <= ROUNDED * raw.numel())


def lookup_case() -> Case:
    raw = np.random.default_rng(0).integers(0, 35, (1052, 1914), dtype=np.uint8)
    table = id_lookup("gtav")
    return Case(lambda: look_up(raw, table), lambda: plain_labels(raw), lambda a, b: np.array_equal(a, b))


def prior_case(folder: Path) -> Case:
    samples, size = write_pair(folder, (1914, 1052), count=4) * 50, (1024, 512)
    cores = usable_cores()

    def ours() -> tuple[np.ndarray, np.ndarray]:
        histogram = priors.class_prior(samples, "gtav", C, num_workers=cores)
        return histogram, priors.spatial_prior(samples, "gtav", C, size, num_workers=cores)

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        counts, spatial = np.zeros(C), np.zeros((C, size[1], size[0]))
        for sample in samples:
            full = plain_labels(np.asarray(Image.open(sample.label)))
            small = plain_labels(np.asarray(Image.open(sample.label).resize(size, Image.Resampling.NEAREST)))
            for c in range(C):
                counts[c] += (full == c).sum()
                spatial[c] += small == c
        return counts / counts.sum(), spatial / spatial.sum(0).clip(1)

    return Case(ours, theirs, lambda a, b: np.allclose(a[0], b[0]) and np.allclose(a[1], b[1], atol=1e-6), repeats=1)


def iteration_case(
    amp: bool, crop: tuple[int, int], batch: int = 2, encoder: str = "resnet101_dilated8", recompute: bool = False
) -> Case:
    """One PyCDA iteration: ours without outputs that the loss does not need; theirs in float32 with all outputs."""
    torch.manual_seed(0)
    model = build_segmentor(encoder, "ppm_bilinear", C, 512 if "18" in encoder else 2048).train()
    images = torch.randn(2, batch, 3, crop[1], crop[0])
    label, valid = torch.randint(0, C, (batch, crop[1], crop[0])), torch.ones(batch, crop[1], crop[0], dtype=torch.bool)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # a whole step that does not change the weights
    curriculum = PyramidCurriculum(None)

    def update(loss: Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    def forward(x: Tensor, aux: bool, half: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(0)  # the same dropout for both
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(x, aux=aux)

    def ours() -> list[float]:
        model.checkpoint_encoder = recompute
        outputs = forward(images[0], True, amp)
        main, aux = (F.cross_entropy(outputs[name].float(), label) for name in ("logits", "aux"))
        values = [update(main + 0.4 * aux)]
        del outputs, main, aux
        return [*values, update(curriculum(forward(images[1], False, amp)["logits"], valid)["total"])]

    def theirs() -> list[float]:
        model.checkpoint_encoder = False
        source = forward(images[0], True)
        values = [update(F.cross_entropy(source["logits"], label) + 0.4 * F.cross_entropy(source["aux"], label))]
        target = forward(images[1], True)
        return [*values, update(plain_curriculum(target["logits"], valid, None, (4, 8)))]

    dtype = torch.bfloat16 if amp else torch.float32
    return Case(ours, theirs, lambda a, b: np.allclose(a, b, rtol=0.1 if amp else 1e-4), repeats=3, dtype=dtype)
