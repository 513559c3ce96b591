"""Source only: supervised training on labelled source images; the baseline, and where PyCDA starts from."""

from collections.abc import Sequence

from utils.config.command_line import load_config
from utils.training.engine import Step
from utils.training.experiment import Experiment, train


def steps(experiment: Experiment) -> list[Step]:
    return [experiment.source_step()]


def main(argv: Sequence[str] | None = None) -> None:
    train(load_config(argv, __doc__, "train_source_only"), steps)


if __name__ == "__main__":
    main()
