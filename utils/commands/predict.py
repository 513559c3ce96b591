"""``sh run.sh predict CONFIG PATH... --save DIR``: segment pictures that have no labels."""

import argparse
import sys
from collections.abc import Sequence

from dataset.failures import exit_after
from utils.commands import arguments
from utils.config.declare import ConfigError
from utils.config.schema import Config

UNREADABLE = 1  # exit status


def run(config: Config, args: argparse.Namespace) -> int:
    """Segment ``args.images`` into ``args.save``. Returns the exit status."""
    from utils import distributed  # torch takes seconds: only once the command line is known to be right
    from utils.inference import load_for
    from utils.run_folder.agreement import file_facts, start_facts
    from utils.run_folder.checkpoint import pair_up
    from utils.scoring.segment import Output, find_pictures, segment_files

    files = find_pictures(args.images, config.target.data_dir, args.save)
    with distributed.process_group(config.timeout_minutes, lambda: start_facts(config)) as device:
        networks = pair_up(args.weights or [str(config.run_folder)])
        if len(networks) > 1:
            raise ConfigError(f"--weights names {len(networks)} networks, pictures are segmented by one")
        (weights,) = networks.values()
        distributed.compare(lambda: file_facts(weights) | {"pictures": str(len(files))})
        predictor = load_for(config, weights, device)
        output = Output(args.save, args.opacity, args.confidence, args.clip, args.fps)
        summary = segment_files(predictor, files, output, config.test.num_workers)
        if distributed.is_main():
            speed = summary.written / summary.seconds
            print(f"{summary.written} pictures by {' and '.join(weights)} in {args.save}, {speed:.2f} a second")
            for failure in summary.failures:
                print(failure, file=sys.stderr)
        distributed.wait_for_first()  # torchrun ends all processes when the first one has a status
    return UNREADABLE if summary.failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(*arguments.predict(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_after(main, "predict")
