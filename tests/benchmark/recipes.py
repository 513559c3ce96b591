"""The cost of an iteration of the released recipes, counted without computing it: arithmetic and memory.

Networks and images are fake tensors: they have shapes but no values, so this takes seconds on any machine.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from models import build_segmentor
from utils.config.read import build_config
from utils.config.schema import Config
from utils.engine.losses import LossFunction, self_training, statistics_only, supervised
from utils.engine.trainer import AUTOCAST
from utils.pycda.curriculum import PyramidCurriculum

CONFIGS = Path(__file__).parents[2] / "cfgs"
RECIPES = ("source_only_exp001", "adabn_exp001", "pycda_exp001", "pycda_spatial_ratio_exp001")
BF16, RECOMPUTE = "train.amp=bf16", "train.checkpoint_encoder=true"
SAVINGS = ((), (BF16,), (RECOMPUTE,), (BF16, RECOMPUTE))
PER_GPU = 2  # images of each domain, for counting memory
RATE = 10e12  # multiplications and additions per second, for an estimate of the time
GIB, HOUR = 2**30, 3600


def _phases(recipe: str, config: Config, size: tuple[int, int]) -> list[tuple[LossFunction, bool]]:
    """Losses of the recipe's phases, and whether an optimiser step follows."""
    source = supervised(config.train.lambda_seg), True
    if recipe.startswith("source_only"):
        return [source]
    if recipe.startswith("adabn"):
        return [source, (statistics_only, False)]
    c = config.curriculum
    prior = torch.ones(config.num_classes, size[1], size[0]) if c.lambda_eq else None
    curriculum = PyramidCurriculum(
        None, box_size=c.box_size, merge_1x1=c.merge_1x1, lambda_eq=c.lambda_eq, spatial_prior=prior
    )
    return [source, (self_training(curriculum), True)]


class _Kept:
    """Bytes that autograd keeps for the backward pass. Every storage counts once; weights and buffers do not count."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in model.state_dict().values()}
        self.bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self.seen:
            self.seen.add(storage)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _size(config: Config, domain: str) -> tuple[int, int]:
    options = getattr(config, domain)
    return options.crop_size or options.input_size


def count(recipe: str, keys: Sequence[str] = (), images: int = PER_GPU) -> tuple[float, float]:
    """(operations, bytes) of one iteration on ``images`` of each domain.

    Operations are those of convolutions and matrix products. Bytes are those of weights, gradients, momentum and the
    kept activations of the larger step.
    """
    config = build_config(CONFIGS / f"{recipe}.yaml", keys)
    kept = [0]
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        m = config.model
        model = build_segmentor(m.encoder, m.decoder, config.num_classes, m.fc_dim, m.use_aux).train()
        model.checkpoint_encoder = config.train.checkpoint_encoder
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        phases = _phases(recipe, config, _size(config, "target"))
        domains = ("source", "target")[: len(phases)]  # source only has one
        for domain, (losses, backward) in zip(domains, phases, strict=True):
            width, height = _size(config, domain)
            batch = {
                "image": torch.zeros(images, 3, height, width),
                "label": torch.zeros(images, height, width, dtype=torch.long),
                "valid": torch.ones(images, height, width, dtype=torch.bool),
            }
            kept.append(_forward_and_backward(model, config.train.amp, losses, batch, backward))
    copies = 3 if config.train.momentum else 2  # weights, gradients, momentum
    return counter.get_total_flops(), copies * parameters + max(kept)


def _forward_and_backward(
    model: torch.nn.Module, amp: str, losses: LossFunction, batch: dict[str, Tensor], backward: bool
) -> int:
    """Bytes kept between the two passes."""

    def forward(images: Tensor, **options: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", AUTOCAST[amp], enabled=amp != "off"):
            return model(images, **options)

    kept = _Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        total = losses(forward, batch).get("total")
    if backward:
        total.backward()
        model.zero_grad(set_to_none=True)
    return kept.bytes


def table() -> str:
    """Markdown: the cost of the shipped recipes, and the memory with the keys that save it."""
    head = ["recipe", "images of a domain, iterations", "TFLOP per iteration"]
    head += [f"hours at {RATE / 1e12:.0f} TFLOP/s", f"GiB at {PER_GPU} images per GPU"]
    head += [" ".join(f"`{key}`" for key in keys) for keys in SAVINGS[1:]]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for recipe in RECIPES:
        t = build_config(CONFIGS / f"{recipe}.yaml").train
        found = [count(recipe, keys) for keys in SAVINGS]
        operations = found[0][0] * t.batch_size / PER_GPU
        cells = [f"{operations / 1e12:.1f}", f"{operations * t.num_steps / RATE / HOUR:.0f}"]
        cells += [f"{size / GIB:.1f}" for _, size in found]
        lines.append(f"| `{recipe}` | {t.batch_size}, {t.num_steps} | {' | '.join(cells)} |")
    return "\n".join(lines)
