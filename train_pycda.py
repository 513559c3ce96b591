"""PyCDA: a supervised source step, then a step on the target with the pyramid curriculum (``utils/curriculum.py``)."""

from collections.abc import Sequence

from utils.build import build_curriculum, class_table
from utils.config.command_line import load_config
from utils.training.engine import Step
from utils.training.experiment import Experiment, train
from utils.training.losses import self_training

# The released script fixes these whatever its YAML says.
DEFAULTS = {"train.momentum": 0.0, "train.weight_decay": 0.0}


def steps(experiment: Experiment) -> list[Step]:
    curriculum = build_curriculum(experiment.config, experiment.source, experiment.log).to(experiment.device)
    return [experiment.source_step(), experiment.target_step(self_training(curriculum, class_table(experiment.config).names))]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_pycda", DEFAULTS)
    if config.curriculum.lambda_eq:
        raise SystemExit("curriculum.lambda_eq is the weight of the spatial term: run train_pycda_spatial.py")
    train(config, steps)


if __name__ == "__main__":
    main()
