"""Source only: supervised training on labelled source images; the baseline, and where PyCDA starts from."""

from collections.abc import Sequence

from utils.config.command_line import load_config
from utils.training.engine import Phase
from utils.training.experiment import Experiment, train


def phases(experiment: Experiment) -> list[Phase]:
    return [experiment.source_phase()]


def main(argv: Sequence[str] | None = None) -> None:
    train(load_config(argv, __doc__, "train_source_only"), phases, "train_source_only")


if __name__ == "__main__":
    main()
