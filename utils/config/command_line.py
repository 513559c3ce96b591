"""The command line that all scripts and commands share. It does not import torch, which takes seconds."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dataset.files import expand_path
from dataset.messages import ChoiceError, DataError
from utils.config.read import build_config, find_config, to_yaml
from utils.config.schema import Config, ConfigError
from utils.config.values import KEYS, value_text

OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")


def keys_help(defaults: Mapping[str, Any]) -> str:
    """Every key with its type, default and meaning, as ``--help`` prints them; ``defaults`` are the script's own."""
    values = {name: value_text(defaults.get(name, key.default)) for name, key in KEYS.items()}
    entries = (f"  {k.name} ({k.kind}, default {values[k.name]})\n      {k.help}" for k in KEYS.values())
    return "keys:\n" + "\n".join(entries)


class Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; --help lists the options")


def make_parser(description: str | None, prog: str | None = None, defaults: Mapping[str, Any] | None = None) -> Parser:
    """Parser of ``CONFIG [key=value ...]``. Its help lists all keys."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=keys_help(defaults or {}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="the same as CONFIG")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration and stop")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="CONFIG key=value",
        help="YAML file, see cfgs/ ('base: FILE' in it inherits from FILE); overrides of keys, train.num_steps=100",
    )
    return parser


def is_override(argument: str) -> bool:
    """Whether an argument is ``key=value`` and not the name of an existing file."""
    return bool(OVERRIDE.match(argument)) and not os.path.exists(argument)


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, rest: str | None = None
) -> argparse.Namespace:
    """Parsed arguments. ``overrides`` may stand anywhere, also behind an option that takes several values.

    Args:
        rest: attribute for paths that are neither the configuration nor ``key=value``; None: such paths are errors.

    Raises:
        ConfigError: an unknown option, no configuration, or an argument that is not ``key=value``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    overrides = [argument for argument in given if is_override(argument)]
    args = parser.parse_intermixed_args([argument for argument in given if not is_override(argument)])
    others = args.arguments
    if args.config is None and others:
        args.config, *others = others
    if args.config is None:
        parser.error("a configuration is needed")
    if rest is not None:
        setattr(args, rest, [expand_path(given) for given in others])
    elif others:
        raise ConfigError(f"command line: '{others[0]}' is not key=value")
    args.overrides = overrides
    return args


def parse_config(
    args: argparse.Namespace, script: str, defaults: dict[str, Any] | None = None, *, labels: bool = True
) -> Config:
    """Config of the script named ``script`` from its parsed command line; ends the program for ``--print-config``.

    Args:
        labels: False: the program reads no labels, so the id tables may be missing.

    Raises:
        ConfigError: a wrong key or value, or classes that differ between the data sets.
    """
    config = build_config(find_config(args.config), args.overrides, defaults, script)
    if args.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    try:  # now, because a wrong name would otherwise stop the run at its first validation
        if labels:
            config.class_table.ids(config.test.eval_classes or ())
    except ChoiceError as error:
        raise ConfigError(f"test.eval_classes: {error}") from error
    return config


def load_config(
    argv: Sequence[str] | None, description: str | None, script: str, defaults: dict[str, Any] | None = None
) -> Config:
    """Config of the script named ``script`` from its command line."""
    return parse_config(parse_arguments(make_parser(description, defaults=defaults), argv), script, defaults)


def path_text(text: str) -> str:
    """The path in the value of an option, see ``expand_path``: a shell does not expand ``--option=~/file``."""
    try:
        return expand_path(text)
    except DataError as error:  # argparse adds the option's name to this error
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """``path_text`` as a Path."""
    return Path(path_text(text))
