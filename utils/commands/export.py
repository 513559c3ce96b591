"""``sh run.sh export CONFIG --to FILE``: a trained network for other programs.

FILE.pt2 needs only torch, FILE.onnx needs an ONNX runtime. The input are uint8 RGB pictures (N, H, W, 3) of any size,
the output are classes (N, H, W). The command runs the file and compares it with the original network. FILE.pth is a
checkpoint without the parts that only training needs.
"""

import argparse
from collections.abc import Sequence

from dataset.program import exit_after
from utils.config.command_line import make_parser, parse_arguments, parse_config, path, path_text
from utils.config.schema import Config, ConfigError

WEIGHTS = ".pth"
SUFFIXES = (".pt2", ".onnx", WEIGHTS)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The options, checked; the configuration."""
    parser = make_parser(__doc__, "sh run.sh export")
    parser.add_argument("--to", type=path, required=True, help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--weights", type=path_text, help="run folder or checkpoint; default: this configuration's run")
    parser.add_argument("--logits", action="store_true", help="give logits (N, C, H, W) instead of classes")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="pictures of this size only")
    args = parse_arguments(parser, argv)
    if args.to.suffix not in SUFFIXES:
        raise ConfigError(f"command line: --to must end in {', '.join(SUFFIXES)}, got {args.to}")
    if args.to.suffix == WEIGHTS and (args.logits or args.size):
        raise ConfigError(f"command line: --logits and --size do not go with a {WEIGHTS} file")
    if args.size and min(args.size) < 1:
        raise ConfigError(f"command line: --size must be positive, got {' '.join(map(str, args.size))}")
    return args, parse_config(args, "evaluate", labels=False)


def main(argv: Sequence[str] | None = None) -> int:
    args, config = parse(argv)
    import torch  # slow: only after the command line is checked

    from utils.run_folder.checkpoint import resolve_weights, save_weights
    from utils.scoring.exported import export_network
    from utils.scoring.predictor import load_for

    weights = resolve_weights(args.weights or config.run_folder)
    if args.to.suffix == WEIGHTS:
        print(save_weights(weights, args.to, config))
    else:
        predictor = load_for(config, [str(weights)], torch.device("cpu"))
        size = tuple(args.size) if args.size else None
        print(export_network(predictor.model, predictor.table, args.to, logits=args.logits, size=size))
    return 0


if __name__ == "__main__":
    exit_after(main)
