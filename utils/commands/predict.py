"""``sh run.sh predict CONFIG PATH... --save DIR``: segment pictures that have no labels.

PATH is a picture, a folder (with its sub-folders) or a .txt list of pictures. Writes colour/, label_ids/ and overlay/
below DIR with the sub-folders of the pictures. Keys of test and tta can be given, such as tta.flip=true. The exit
status is 1 if a picture cannot be read or is too large for the memory; the other pictures are still segmented.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from dataset.program import exit_after
from utils.config.command_line import make_parser, parse_arguments, parse_config, path, path_text
from utils.config.schema import Config, ConfigError

CLIPS = (".gif", ".webp")
SLOWEST, FASTEST = 0.01, 100  # frames per second; a .gif stores the time of a frame in 1/100 s, with 16 bits
LEGENDS = ("none", "beside")
UNREADABLE = 1  # exit status


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The options, with the pictures in ``images``; the configuration."""
    parser = make_parser(__doc__, "sh run.sh predict")
    parser.usage = "sh run.sh predict CONFIG PATH... --save DIR [option ...] [key=value ...]"
    parser.add_argument(
        "--weights", nargs="+", type=path_text, help="run folder or checkpoint; default: this configuration's run"
    )
    parser.add_argument("--save", type=path, required=True, help="folder of the results")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours over the picture, from 0 to 1")
    parser.add_argument("--confidence", action="store_true", help="also write the highest probability of each pixel")
    parser.add_argument(
        "--legend",
        choices=LEGENDS,
        default=LEGENDS[0],
        help="beside: on the right of each overlay; none: no legend",
    )
    parser.add_argument("--clip", type=path, help="animate the overlays, in their order, as this .gif or .webp file")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second of the clip")
    args = parse_arguments(parser, argv, rest="images")
    if not args.images:
        raise ConfigError(
            f"command line: no pictures (the first argument, {args.config}, is the configuration): give files, folders "
            "or .txt lists"
        )
    if not 0 <= args.opacity <= 1:
        raise ConfigError(f"command line: --opacity must be from 0 to 1, got {args.opacity}")
    if not SLOWEST <= args.fps <= FASTEST:
        raise ConfigError(f"command line: --fps must be from {SLOWEST} to {FASTEST}, got {args.fps}")
    if args.clip is not None and args.clip.suffix.lower() not in CLIPS:
        raise ConfigError(f"command line: --clip must end in {' or '.join(CLIPS)}, got {args.clip}")
    return args, parse_config(args, "evaluate", labels=False)


def segment(args: argparse.Namespace, config: Config) -> int:
    """Segment ``args.images`` into ``args.save``. Returns the exit status."""
    from utils import distributed  # imports torch: only after the command line is checked
    from utils.run_folder.checkpoint import pair_up
    from utils.run_folder.manifest import file_facts, start_facts
    from utils.scoring.predictor import load_for
    from utils.scoring.segment import Output, find_pictures, segment_files

    output = Output(args.save, args.opacity, args.confidence, args.clip, args.fps, args.legend != LEGENDS[0])
    with distributed.process_group(config.timeout_minutes, lambda: start_facts(config)) as device:
        files = find_pictures(args.images, config.target.data_dir, output)
        networks = pair_up(args.weights or [str(config.run_folder)])
        if len(networks) > 1:
            raise ConfigError(f"--weights names {len(networks)} networks: give one")
        (weights,) = networks.values()
        distributed.check_agreement(lambda: file_facts(weights) | {"pictures": str(len(files))})
        predictor = load_for(config, weights, device)
        started = time.monotonic()
        written, failures = segment_files(predictor, files, output, config.test.num_workers)
        if distributed.is_main():
            speed = written / (time.monotonic() - started)
            print(f"{written} pictures by {' and '.join(weights)} in {args.save}, {speed:.2f} per second")
            for failure in failures:
                print(failure, file=sys.stderr)
        distributed.wait_for_first()  # torchrun ends all processes when one exits with a failure
    return UNREADABLE if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    return segment(*parse(argv))


if __name__ == "__main__":
    exit_after(main, "predict")
