"""Convert a trained run's batch-norm statistics to the target: evaluate, convert, save, evaluate again.

The converted checkpoint is adabn.pth in the run folder. Without test labels it is written without scores. Without a
trained run, the official pair in model.weights_encoder and model.weights_decoder is converted, which also writes
adabn_encoder.pth and adabn_decoder.pth.
"""

from collections.abc import Sequence

from dataset.program import exit_after
from utils.config.command_line import load_config


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "test_adabn")
    from utils.engine.convert import convert_run  # imports torch: only after the configuration is checked

    convert_run(config)


if __name__ == "__main__":
    exit_after(main, resumable=True)
