"""The command line that all scripts share."""

import argparse
from collections.abc import Sequence
from typing import Any

from utils.config.keys import keys_help
from utils.config.read import build_config, to_yaml
from utils.config.schema import Config


def make_parser(description: str) -> argparse.ArgumentParser:
    """``--config CONFIG [key=value ...]``, with all keys in its help."""
    parser = argparse.ArgumentParser(
        description=description, epilog=keys_help(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, see cfgs/; 'base: FILE' in it inherits")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, e.g. train.num_steps=100")
    return parser


def parse_config(args: argparse.Namespace, script: str, defaults: dict[str, Any] | None = None) -> Config:
    """Config of the script named ``script`` from its parsed command line; ends the program for ``--print-config``."""
    config = build_config(args.config, args.overrides, defaults, script)
    if args.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def load_config(
    argv: Sequence[str] | None, description: str, script: str, defaults: dict[str, Any] | None = None
) -> Config:
    """Config of the script named ``script`` from its command line."""
    return parse_config(make_parser(description).parse_intermixed_args(argv), script, defaults)
