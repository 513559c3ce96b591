"""Command lines of the commands. They are read before the commands are imported, as torch takes seconds."""

import argparse
from collections.abc import Sequence
from os.path import expanduser

from dataset.cores import usable_cores
from utils.config.command_line import Parser, is_override, make_parser, parse_arguments, parse_config, path
from utils.config.declare import ConfigError
from utils.config.schema import Config

DEMO = """The whole recipe on procedural street scenes: one table and one picture at the end.

Finished stages are not repeated, so all variants share one source-only run."""
CHECK = """Every problem of the data that a configuration names, in one table.

The exit status is 1 if something would stop a training or an evaluation, 0 if there are only remarks."""
PREDICT = """Segment pictures that have no labels.

PATH is a picture, a folder (with its sub-folders) or a .txt list of pictures. Writes colour/, label_ids/ and overlay/
below DIR with the sub-folders of the pictures. Keys of test and tta count, such as tta.flip=true. The exit status is 1
if a picture could not be read; the others are done all the same."""
EXPORT = """A trained network for use elsewhere.

FILE.pt2 needs nothing but torch, FILE.onnx an ONNX runtime; both take uint8 RGB pictures (N, H, W, 3) of any size and
give classes (N, H, W), and are run and compared with the original once they are written. FILE.pth is a checkpoint
without what only training needs, to pass on."""
CLIPS = (".gif", ".webp")
WEIGHTS = ".pth"
EXPORTED = (".pt2", ".onnx", WEIGHTS)
REPORT = """One HTML file about a run, in its folder: scores, curves, pseudo-labels, configuration."""
COMPARE = """Did it help? Without target labels.

The first RUN is the network before the adaptation, the last one after it; of one RUN alone (default: the run of CONFIG)
the network before is the one that it started from. On unlabelled target training images: how often each class is
predicted, beside its share in the source labels and in the pseudo-labels; how far the networks agree. On source images:
what was forgotten. With source.data_list=FILE these are images that were not trained on, if there are any."""
COMPARED = 100  # images of each domain at most


def demo(argv: Sequence[str]) -> tuple[argparse.Namespace]:
    """Options of the demo; ``overrides`` are for every stage."""
    parser = Parser(prog="sh run.sh demo", description=DEMO, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data and initialisation")
    parser.add_argument("--out", type=path, default=path("runs/demo"), help="folder of data, runs and results")
    parser.add_argument("--quick", action="store_true", help="every stage on fewer pictures, an eighth of the steps")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--oracle", action="store_true", help="only train on labelled target images: the upper bound")
    kind.add_argument("--ablation", action="store_true", help="the layers of the pyramid one by one")
    kind.add_argument("--variants", action="store_true", help="as released and as in the paper")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key in every stage")
    args = parser.parse_intermixed_args(argv)
    for argument in args.overrides:
        if not is_override(argument):
            raise ConfigError(f"command line: '{argument}' is not key=value")
    if args.seed < 0:
        raise ConfigError(f"command line: --seed must be at least 0, got {args.seed}")
    return (args,)


def check(argv: Sequence[str]) -> tuple[Config, int, bool]:
    """The configuration to check, how many processes read files, and whether what repeats is folded."""
    parser = make_parser(CHECK, "sh run.sh check")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that read files; all cores")
    parser.add_argument("--all", action="store_true", help="a line for each file, also where many have the same fault")
    args = parse_arguments(parser, argv)
    if args.workers < 0:
        raise ConfigError(f"command line: --workers must be at least 0, got {args.workers}")
    return parse_config(args, "evaluate"), args.workers, not args.all


def report(argv: Sequence[str]) -> tuple[Config, str | None, int]:
    """The configuration of the run, the run to compare it with, and of how many images at most."""
    parser = make_parser(REPORT, "sh run.sh report")
    parser.add_argument("--baseline", help="run folder to compare with; default: the run that it started from")
    parser.add_argument(
        "--images", type=int, default=COMPARED, help="of each domain at most, where labels are not used"
    )
    args = parse_arguments(parser, argv)
    _check_images(args.images)
    return parse_config(args, "evaluate"), args.baseline and str(path(args.baseline)), args.images


def compare(argv: Sequence[str]) -> tuple[Config, list[str], int]:
    """The configuration, the runs (folders or files) and how many images of each domain are looked at."""
    parser = make_parser(COMPARE, "sh run.sh compare")
    parser.usage = "sh run.sh compare CONFIG [RUN ...] [--images N] [key=value ...]"
    parser.add_argument("--images", type=int, default=COMPARED, help="of each domain at most, evenly spaced")
    args = parse_arguments(parser, argv, rest="runs")
    _check_images(args.images)
    return parse_config(args, "evaluate"), [expanduser(run) for run in args.runs], args.images


def _check_images(count: int) -> None:
    if count < 1:
        raise ConfigError(f"command line: --images must be at least 1, got {count}")


def predict(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """The configuration, and what is predicted of which pictures into which folder."""
    parser = make_parser(PREDICT, "sh run.sh predict")
    parser.usage = "sh run.sh predict CONFIG PATH... --save DIR [option ...] [key=value ...]"
    parser.add_argument(
        "--weights", nargs="+", type=expanduser, help="what predicts; default: this configuration's run"
    )
    parser.add_argument("--save", type=path, required=True, help="folder of the results")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours over the picture, 0 to 1")
    parser.add_argument("--confidence", action="store_true", help="write the highest probability of each pixel too")
    parser.add_argument("--clip", type=path, help="animate the overlays, in their order, as this .gif or .webp file")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second of the clip")
    args = parse_arguments(parser, argv, rest="images")
    if not args.images:
        raise ConfigError("command line: no pictures: give files, folders or .txt lists")
    if not 0 <= args.opacity <= 1:
        raise ConfigError(f"command line: --opacity must be from 0 to 1, got {args.opacity}")
    if args.fps <= 0:
        raise ConfigError(f"command line: --fps must be above 0, got {args.fps}")
    if args.clip is not None and args.clip.suffix.lower() not in CLIPS:
        raise ConfigError(f"command line: --clip must end in {' or '.join(CLIPS)}, got {args.clip}")
    return parse_config(args, "evaluate"), args


def export(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """The configuration of the run, and which file is made of it."""
    parser = make_parser(EXPORT, "sh run.sh export")
    parser.add_argument("--to", type=path, required=True, help=f"file to write: {', '.join(EXPORTED)}")
    parser.add_argument(
        "--weights", type=expanduser, help="run folder or checkpoint; default: this configuration's run"
    )
    parser.add_argument("--logits", action="store_true", help="give logits (N, C, H, W) instead of classes")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="pictures of this size only")
    args = parse_arguments(parser, argv)
    if args.to.suffix not in EXPORTED:
        raise ConfigError(f"command line: --to must end in {', '.join(EXPORTED)}, got {args.to}")
    if args.to.suffix == WEIGHTS and (args.logits or args.size):
        raise ConfigError(f"command line: --logits and --size do not go with a {WEIGHTS} file")
    if args.size and min(args.size) < 1:
        raise ConfigError(f"command line: --size must be positive, got {' '.join(map(str, args.size))}")
    return parse_config(args, "evaluate"), args
