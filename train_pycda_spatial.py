"""PyCDA + spatial ratio: the pyramid curriculum with a class histogram per position as an additional label.

Positions have a meaning only in whole images, so the target is not cropped, scaled or rotated.
"""

from collections.abc import Sequence

from dataset.program import exit_after
from train_pycda import DEFAULTS as PYCDA_DEFAULTS
from train_pycda import phases
from utils.config.command_line import load_config
from utils.config.schema import ConfigError

DEFAULTS = PYCDA_DEFAULTS | {"train.schedule": "drop", "curriculum.merge_1x1": True, "curriculum.lambda_eq": 0.4}


def main(argv: Sequence[str] | None = None) -> None:
    config = load_config(argv, __doc__, "train_pycda_spatial", DEFAULTS)
    target = config.target
    if not config.curriculum.lambda_eq:
        raise ConfigError("curriculum.lambda_eq is 0, so there is no spatial term: run train_pycda.py")
    if target.crop_size is not None or target.scale is not None or target.rotate is not None:
        raise ConfigError(
            "the spatial prior needs whole images: set target.crop_size, target.scale, target.rotate to null"
        )
    from utils.engine.experiment import train  # imports torch: only after the configuration is checked

    train(config, phases, "train_pycda_spatial", self_trained=True)


if __name__ == "__main__":
    exit_after(main, resumable=True)
