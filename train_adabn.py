"""AdaBN: source only, with target images moving the batch-norm statistics.

Started from source-only weights with PyCDA's schedule, it is the control that PyCDA has to beat: the same further
source steps and the same mixed statistics, but no curriculum.
"""

from collections.abc import Sequence

from utils.config.command_line import load_config
from utils.training.engine import Phase
from utils.training.experiment import Experiment, train
from utils.training.losses import statistics_only


def phases(experiment: Experiment) -> list[Phase]:
    return [experiment.source_phase(), experiment.target_phase(statistics_only, backward=False)]


def main(argv: Sequence[str] | None = None) -> None:
    train(load_config(argv, __doc__, "train_adabn"), phases, "train_adabn")


if __name__ == "__main__":
    main()
