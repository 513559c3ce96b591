"""AdaBN: supervised training on the source; target images only update the batch-norm statistics.

With source-only weights and PyCDA's schedule this is the control for PyCDA: it has the same additional source steps and
the same mixed statistics, but no curriculum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataset.program import exit_after
from utils.config.command_line import load_config

if TYPE_CHECKING:
    from utils.engine.experiment import Experiment
    from utils.engine.trainer import Phase


def phases(experiment: Experiment) -> list[Phase]:
    from utils.engine.losses import statistics_only

    return [experiment.source_phase(), experiment.target_phase(statistics_only, backward=False)]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_adabn")
    from utils.engine.experiment import train  # imports torch: only after the configuration is checked

    train(config, phases, "train_adabn")


if __name__ == "__main__":
    exit_after(main, resumable=True)
