"""A recipe's trainer, as its script makes it, on one batch of each domain in memory."""

import importlib
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from utils.builders import data, network
from utils.config.read import build_config
from utils.config.schema import Config, Size
from utils.engine.experiment import Experiment
from utils.engine.losses import Batch
from utils.engine.trainer import Trainer
from utils.run_folder.log import RunLog

CONFIGS = Path(__file__).parents[2] / "cfgs"
RECIPES = {
    "train_source_only": "source_only_exp001",
    "train_adabn": "adabn_exp001",
    "train_pycda": "pycda_exp001",
    "train_pycda_spatial": "pycda_spatial_ratio_exp001",
}


def _size(config: Config, domain: int) -> Size:
    """(W, H) of the training images of a domain."""
    options = config.target if domain == data.TARGET else config.source
    return options.crop_size or options.input_size


def _batch(config: Config, domain: int, pinned: bool) -> Batch:
    generator = torch.Generator().manual_seed(domain)
    images, (width, height) = config.train.batch_size, _size(config, domain)
    tensors = {
        "image": torch.randn(images, 3, height, width, generator=generator),
        "label": torch.randint(0, config.num_classes, (images, height, width), generator=generator),
        "valid": torch.ones(images, height, width, dtype=torch.bool),
    }
    if pinned:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {**tensors, "name": [""] * images, "skipped": [""] * images}


def trainer(script: str, keys: Sequence[str], device: torch.device, folder: Path) -> Trainer:
    """The trainer of ``script`` with its shipped recipe and ``keys``, of random weights; ``folder`` gets the priors."""
    module = importlib.import_module(script)
    config = build_config(
        CONFIGS / f"{RECIPES[script]}.yaml", ["model.weights=scratch", *keys], getattr(module, "DEFAULTS", None), script
    )
    (width, height), c = _size(config, data.TARGET), config.curriculum
    if c.image_target == "source":
        c.class_prior = str(folder / "class.npy")
        np.save(c.class_prior, np.full(config.num_classes, 1 / config.num_classes))
    if c.lambda_eq:
        c.spatial_prior = str(folder / "spatial.npy")
        np.save(c.spatial_prior, np.full((height, width, config.num_classes), 1 / config.num_classes, np.float32))

    def loader(self: data.Data, domain: int) -> Iterator[Batch]:
        return repeat(_batch(config, domain, pinned=device.type == "cuda"))

    log = RunLog(folder, enabled=False)
    model = network.build_model(config, log, device, pretrained=False).train()
    with mock.patch.object(data.Data, "training_loader", loader):
        phases = module.phases(Experiment(config, data.Data(config), device, log))
    return Trainer(config, model, network.build_optimizer(config, model), phases, None, device, log)
