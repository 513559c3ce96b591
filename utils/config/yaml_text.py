"""YAML as people mean it: ``no`` and ``off`` are words, a date is one too, and every mistake is one line."""

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from utils.config.declare import ConfigError

BOOL, TIMESTAMP = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
# What PyYAML raises for text that is not YAML, for a tag that its value does not fit, and for a loop of aliases.
PROBLEMS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class Loader(yaml.SafeLoader):
    """Only true and false are truth values, as in YAML 1.2; YAML 1.1 has yes, no, on, off and dates besides."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOL, TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, without a byte-order mark.

    Raises:
        ConfigError: no such file, or one that cannot be read or is not UTF-8.
    """
    if not path.is_file():
        raise ConfigError(f"no config file {path}")
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        line = content[: error.start].count(b"\n") + 1
        where = "is UTF-16" if wide else f"is not UTF-8 in line {line}"
        raise ConfigError(f"{path} {where}: save it as UTF-8") from error


def parse(text: str, origin: str) -> tuple[Any, yaml.Node | None]:
    """Value and syntax tree of a YAML document; ``origin`` (a file, a key) goes into the error message.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=Loader), yaml.compose(text, Loader=Loader)  # noqa: S506, a SafeLoader
    except PROBLEMS as error:
        raise ConfigError(f"{origin} is not YAML{_reason(error, text)}") from error


def _reason(error: Exception, text: str) -> str:
    """Where and why, on one line."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, RecursionError):
        return ": it is nested too deeply, or within itself"
    if mark is None:
        return f": {' '.join(str(error).split())}"
    lines = text.splitlines()
    where = f", line {mark.line + 1}" if len(lines) > 1 else ""
    if mark.line < len(lines) and "\t" in lines[mark.line]:
        return f"{where}: there is a tab, indent with spaces"
    reasons = (getattr(error, "context", None), getattr(error, "problem", None))
    return f"{where}: {' '.join(str(part) for part in reasons if part)}"
