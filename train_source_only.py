"""Source only: supervised training on labelled source images; the baseline and the start of PyCDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataset.program import exit_after
from utils.config.command_line import load_config

if TYPE_CHECKING:
    from utils.engine.experiment import Experiment
    from utils.engine.trainer import Phase


def phases(experiment: Experiment) -> list[Phase]:
    return [experiment.source_phase()]


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_source_only")
    from utils.engine.experiment import train  # imports torch: only after the configuration is checked

    train(config, phases, "train_source_only")


if __name__ == "__main__":
    exit_after(main, resumable=True)
