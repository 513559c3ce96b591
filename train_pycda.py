"""PyCDA: a supervised source step, then a step on the target with the pyramid curriculum (``utils/curriculum.py``)."""

from collections.abc import Sequence
from typing import Any

from utils.build.curriculum import build_curriculum
from utils.config.command_line import load_config
from utils.training.engine import Phase
from utils.training.experiment import Experiment, train
from utils.training.losses import self_training

# The released script fixes these whatever its YAML says.
DEFAULTS: dict[str, Any] = {"train.momentum": 0.0, "train.weight_decay": 0.0}


def phases(experiment: Experiment) -> list[Phase]:
    curriculum = build_curriculum(experiment.config, experiment.source, experiment.log).to(experiment.device)
    return [experiment.source_phase(), experiment.target_phase(self_training(curriculum))]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_pycda", DEFAULTS)
    if config.curriculum.lambda_eq:
        raise SystemExit("curriculum.lambda_eq is the weight of the spatial term: run train_pycda_spatial.py")
    train(config, phases)


if __name__ == "__main__":
    main()
