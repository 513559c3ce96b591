"""Convert a trained run's batch-norm statistics to the target: evaluate, convert, save, evaluate again.

The converted checkpoint is adabn.pth in the run folder. Without test labels there are no scores, and the same file.
Without a run to convert, model.weights_encoder and model.weights_decoder name an official pair, which gives
adabn_encoder.pth and adabn_decoder.pth too.
"""

from collections.abc import Sequence

from dataset.program import exit_after
from utils.config.command_line import load_config


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "test_adabn")
    from utils.engine.convert import convert_run  # torch, once the configuration is known to be right

    convert_run(config)


if __name__ == "__main__":
    exit_after(main, resumable=True)
