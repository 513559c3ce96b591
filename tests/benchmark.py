"""``sh run.sh benchmark``: ours beside the straightforward way of doing it, on this machine, in one run.

The stand-in is written from the description of the released code: float32 logits and a softmax wherever one is needed,
boolean indexing, one masked assignment a class, logits to numpy before argmax, full-size decode and resize per sample,
the prior pooled again in every step. Both are checked to give the same values before they are timed. Each case runs in a
process of its own; ours and theirs take turns, and the figures are medians. Extra memory is the peak above the inputs.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from dataset import priors  # noqa: E402
from dataset.folders import Sample, read_image, read_label  # noqa: E402
from dataset.labels import id_lookup  # noqa: E402
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, JointTransform  # noqa: E402
from models import build_segmentor  # noqa: E402
from utils.curriculum import EPS, PyramidCurriculum  # noqa: E402
from utils.metrics import ConfusionMatrix  # noqa: E402

C = 19
MIB = 2**20
RAW_IDS = {raw: train for raw, train in enumerate(id_lookup("cityscapes").tolist()) if train != 255}


@dataclass(frozen=True)
class Case:
    """Two functions of the same work; ``same`` compares what they return."""

    ours: Callable
    theirs: Callable
    same: Callable
    repeats: int = 7


def bce(p: Tensor, t: Tensor) -> Tensor:
    return -(t * torch.log(p + EPS) + (1 - t) * torch.log(1 - p + EPS))


def plain_curriculum(logits: Tensor, valid: Tensor, prior: Tensor | None, box_size: Sequence[int]) -> Tensor:
    """The released recipe, term by term, sharing nothing."""
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
    logits = F.interpolate(6 * torch.randn(shape[0], C, shape[1] // 8, shape[2] // 8, generator=generator), shape[1:], mode="bilinear")
    logits.requires_grad_()
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
    """Pictures with as much detail as photographs, and labels with shapes."""
    rng, samples = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(int) + rng.integers(-8, 8, (size[1], size[0], 3))
        ids = rng.choice(list(RAW_IDS), (size[1] // 40 + 1, size[0] // 40 + 1)).astype(np.uint8)
        label = np.kron(ids, np.ones((40, 40), np.uint8))[: size[1], : size[0]]
        paths = folder / f"image{i}.png", folder / f"label{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[0])
        Image.fromarray(label).save(paths[1])
        samples.append(Sample(str(i), *paths))
    return samples


def plain_labels(raw: np.ndarray) -> np.ndarray:
    """One masked assignment a class, into float32."""
    labels = np.full(raw.shape, 255, np.float32)
    for raw_id, train_id in RAW_IDS.items():
        labels[raw == raw_id] = train_id
    return labels


def sample_case(folder: Path, size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]) -> Case:
    (sample,) = write_pair(folder, size)
    transform = JointTransform(size=resized, crop=crop)

    def ours() -> tuple[Tensor, Tensor]:
        image, label, _ = transform(read_image(sample.image), read_label(sample.label, "gtav"), np.random.default_rng(0))
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
    """The bound of a sample: nothing but decoding its two files."""
    case = sample_case(folder, size, resized, crop)

    def decode() -> None:
        Image.open(folder / "image0.png").load()
        Image.open(folder / "label0.png").load()

    return Case(case.ours, decode, lambda a, b: True)


def evaluation_case() -> Case:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, C, 1024, 2048, generator=generator)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 34, (1, 1024, 2048), dtype=np.uint8))
    table = torch.from_numpy(id_lookup("cityscapes"))

    def ours() -> np.ndarray:
        matrix = ConfusionMatrix(C)
        matrix.update(table[raw.int()], logits.argmax(1))
        return matrix.counts.numpy()

    def theirs() -> np.ndarray:
        label = np.full(raw.shape, 255, np.int64)
        for raw_id in range(35):
            label[raw.numpy() == raw_id] = RAW_IDS.get(raw_id, 255)
        prediction = logits.numpy().transpose(0, 2, 3, 1).argmax(3)
        mask = (label >= 0) & (label < C)
        return np.bincount(C * label[mask] + prediction[mask], minlength=C**2).reshape(C, C)

    return Case(ours, theirs, np.array_equal)


def lookup_case() -> Case:
    raw = np.random.default_rng(0).integers(0, 35, (1052, 1914), dtype=np.uint8)
    table = id_lookup("gtav")
    return Case(lambda: table[raw], lambda: plain_labels(raw), lambda a, b: np.array_equal(a, b), repeats=15)


def prior_case(folder: Path) -> Case:
    samples, size = write_pair(folder, (1914, 1052), count=4) * 50, (1024, 512)
    cores = len(os.sched_getaffinity(0))

    def ours() -> tuple[np.ndarray, np.ndarray]:
        histogram = priors.class_histogram(samples, "gtav", C, num_workers=cores)
        return histogram, priors.spatial_histogram(samples, "gtav", C, size, num_workers=cores)

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


def iteration_case(amp: bool, crop: tuple[int, int], batch: int = 2, encoder: str = "resnet101_dilated8") -> Case:
    """One PyCDA iteration: ours, without what the loss does not need; theirs, in float32 with everything."""
    torch.manual_seed(0)
    model = build_segmentor(encoder, "ppm_bilinear", C, 512 if "18" in encoder else 2048).train()
    images = torch.randn(2, batch, 3, crop[1], crop[0])
    label, valid = torch.randint(0, C, (batch, crop[1], crop[0])), torch.ones(batch, crop[1], crop[0], dtype=torch.bool)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    curriculum = PyramidCurriculum(None)

    def update(loss: Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    def ours() -> list[float]:
        def forward(x: Tensor, aux: bool) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                return model(x, aux=aux)

        outputs = forward(images[0], True)
        values = [update(F.cross_entropy(outputs["logits"].float(), label) + 0.4 * F.cross_entropy(outputs["aux"].float(), label))]
        del outputs
        return [*values, update(curriculum(forward(images[1], False)["logits"], valid)["total"])]

    def theirs() -> list[float]:
        source, target = model(images[0], aux=True), None
        values = [update(F.cross_entropy(source["logits"], label) + 0.4 * F.cross_entropy(source["aux"], label))]
        target = model(images[1], aux=True)
        return [*values, update(plain_curriculum(target["logits"], valid, None, (4, 8)))]

    return Case(ours, theirs, lambda a, b: np.allclose(a, b, rtol=0.1 if amp else 1e-2), repeats=2)


GTAV, CITY = ((1914, 1052), (1024, 560), (560, 480)), ((2048, 1024), (1024, 512), (560, 480))
# name -> (what to reach: theirs / ours in time, ours / theirs in memory), how to build the case
CASES: dict[str, tuple[float, float | None, Callable[[Path], Case]]] = {
    "curriculum 2x19x480x560": (2.5, 0.5, lambda folder: curriculum_case((2, 480, 560), False)),
    "curriculum + spatial 2x19x512x1024": (2.5, 0.5, lambda folder: curriculum_case((2, 512, 1024), True)),
    "GTAV sample": (1.5, None, lambda folder: sample_case(folder, *GTAV)),
    "GTAV sample against bare decode": (1 / 1.2, None, lambda folder: decode_case(folder, *GTAV)),
    "Cityscapes sample": (1.5, None, lambda folder: sample_case(folder, *CITY)),
    "Cityscapes sample against bare decode": (1 / 1.2, None, lambda folder: decode_case(folder, *CITY)),
    "evaluation after the forward pass": (10, None, lambda folder: evaluation_case()),
    "label look-up 1052x1914": (10, None, lambda folder: lookup_case()),
    "class histogram + spatial prior, 200 files": (4, None, prior_case),
    "PyCDA iteration, resnet18, 4+4 of 128x128": (1.1, 0.7, lambda folder: iteration_case(False, (128, 128), 4, "resnet18_dilated8")),
    "the same, bf16": (1.9, 0.7, lambda folder: iteration_case(True, (128, 128), 4, "resnet18_dilated8")),
    "PyCDA iteration, resnet101, 2+2 of 560x480": (1.1, 0.7, lambda folder: iteration_case(False, (560, 480))),
    "the same, resnet101, bf16": (1.9, 0.7, lambda folder: iteration_case(True, (560, 480))),
}


def peak_extra(work: Callable) -> float:
    """MiB that ``work`` needs at its peak above what is in use before it (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(name: str) -> dict[str, float | bool]:
    """Medians of one case, taken in turns, and the two peaks."""
    with tempfile.TemporaryDirectory() as folder:
        case = CASES[name][2](Path(folder))
        same = bool(case.same(case.ours(), case.theirs()))
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(case.repeats):
            for side in times:
                started = time.perf_counter()
                getattr(case, side)()
                times[side].append(time.perf_counter() - started)
        memory = {side: peak_extra(getattr(case, side)) for side in times}
    return {"same": same} | {f"{s}_ms": 1000 * statistics.median(t) for s, t in times.items()} | {f"{s}_mib": m for s, m in memory.items()}


def row(name: str, result: dict[str, float | bool]) -> str:
    ratio, memory_goal, _ = CASES[name]
    speed, memory = result["theirs_ms"] / result["ours_ms"], result["ours_mib"] / max(result["theirs_mib"], 1)
    reached = result["same"] and speed >= ratio and (memory_goal is None or memory <= memory_goal)
    cells = [name, f"{result['theirs_ms']:.1f}", f"{result['ours_ms']:.1f}", f"{speed:.2f}x", f"{ratio:.2f}x"]
    cells += [f"{memory:.2f}", "-" if memory_goal is None else f"{memory_goal:.1f}", "yes" if reached else "**no**"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sh run.sh benchmark", description=__doc__)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--skip", nargs="*", default=[], help="leave out cases whose name contains one of these words")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of benchmark.md and benchmark.json")
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    results = {}
    for name in (name for name in CASES if not any(word in name for word in args.skip)):
        command = [sys.executable, __file__, "--case", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(row(name, results[name]), flush=True)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"
    head = ["| what | theirs, ms | ours, ms | speed | to reach | memory, ours / theirs | to reach | reached |", "|---" * 8 + "|"]
    args.out.mkdir(parents=True, exist_ok=True)
    table = "\n".join([*head, *(row(name, result) for name, result in results.items()), "", machine])
    (args.out / "benchmark.md").write_text(table + "\n")
    (args.out / "benchmark.json").write_text(json.dumps({"machine": machine, "results": results}, indent=2))
    print(f"{table}\nwritten to {args.out}")


if __name__ == "__main__":
    main()
