"""PyCDA: a supervised source step, then a step on the target with the pyramid curriculum (``utils/pycda``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset.program import exit_after
from utils.config.command_line import load_config
from utils.config.schema import ConfigError

if TYPE_CHECKING:
    from utils.engine.experiment import Experiment
    from utils.engine.trainer import Phase

# The released script always uses these values, with any YAML.
DEFAULTS: dict[str, Any] = {"train.momentum": 0.0, "train.weight_decay": 0.0}


def phases(experiment: Experiment) -> list[Phase]:
    from utils.builders.curriculum import build_curriculum
    from utils.engine.losses import self_training

    config, report = experiment.data.config, experiment.log.text
    curriculum = build_curriculum(config.curriculum, config.num_classes, experiment.data, report).to(experiment.device)
    return [experiment.source_phase(), experiment.target_phase(self_training(curriculum), curriculum=curriculum)]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_pycda", DEFAULTS)
    if config.curriculum.lambda_eq:
        raise ConfigError("curriculum.lambda_eq is the weight of the spatial term: run train_pycda_spatial.py")
    from utils.engine.experiment import train  # imports torch: only after the configuration is checked

    train(config, phases, "train_pycda", self_trained=True)


if __name__ == "__main__":
    exit_after(main, resumable=True)
