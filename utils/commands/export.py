"""``sh run.sh export CONFIG --to FILE``: a trained network for use elsewhere."""

import argparse
import sys
from collections.abc import Sequence

from dataset.failures import exit_after
from utils.build.exported import export_network
from utils.commands import arguments
from utils.config.schema import Config
from utils.inference import load
from utils.run_folder.checkpoint import resolve_weights
from utils.run_folder.weights_only import save_weights


def run(config: Config, args: argparse.Namespace) -> int:
    """Write ``args.to``. Returns the exit status."""
    path = resolve_weights(args.weights or str(config.run_folder))
    if args.to.suffix == arguments.WEIGHTS:
        print(save_weights(path, args.to, config))
    else:
        predictor = load(path, "cpu")
        size = tuple(args.size) if args.size else None
        print(export_network(predictor.model, predictor.table, args.to, logits=args.logits, size=size))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(*arguments.export(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_after(main)
