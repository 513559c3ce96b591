"""A recipe's trainer, the same as in its script, on one batch of each domain that stays in memory."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import torch

from dataset.toy_city import Plan, write_toy_city
from utils.config.read import build_config
from utils.engine.experiment import build_trainer
from utils.engine.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "cfgs"
RECIPES = {
    "train_source_only": "source_only_exp001",
    "train_adabn": "adabn_exp001",
    "train_pycda": "pycda_exp001",
    "train_pycda_spatial": "pycda_spatial_ratio_exp001",
}
SMALL = Plan(num_source=8, num_source_val=1, num_target=8, num_target_val=1)  # a batch of each domain


def trainer(script: str, keys: Sequence[str], device: torch.device, folder: Path) -> Trainer:
    """The trainer of ``script`` with its recipe, ``keys`` and random weights; data and run are in ``folder``."""
    write_toy_city(folder / "city", SMALL)
    module = importlib.import_module(script)
    own = [
        *(f"source.data_dir={folder}/city/gtav", f"target.data_dir={folder}/city/cityscapes"),
        *(f"snapshot_dir={folder}/runs", "resume=off", "val.held_out=0", "train.num_workers=0"),
        *("model.weights=scratch", "model.weights_encoder=null", "model.weights_decoder=null"),
    ]
    config = build_config(CONFIGS / f"{RECIPES[script]}.yaml", [*own, *keys], getattr(module, "DEFAULTS", None), script)
    run = build_trainer(config, module.phases, script, device=device)
    run.phases = [replace(phase, loader=repeat(next(iter(phase.loader)))) for phase in run.phases]
    return run
