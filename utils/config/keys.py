"""Every configuration key with its type, default and meaning, from the code; run as a module, this prints Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from utils.config.read import value_text
from utils.config.schema import Config
from utils.config.values import key_types, type_name


@dataclass(frozen=True)
class Key:
    name: str
    type: str
    default: str
    help: str


def describe_keys(group: Any = None, prefix: str = "") -> Iterator[Key]:
    """All keys in the order of ``utils/config/schema.py``, by dotted name."""
    group, types = group or Config(), key_types()
    for f in fields(group):
        value, name = getattr(group, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from describe_keys(value, f"{name}.")
        else:
            choices = f.metadata["choices"]
            kind = " \\| ".join(choices) if choices else type_name(types[name]).replace("|", "or")
            if f.metadata["within"]:
                kind += f", {f.metadata['within']}"
            yield Key(name, kind, value_text(value), f.metadata["help"])


def keys_markdown() -> str:
    """The table of keys in ``cfgs/README.md``."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{k.name}` | {k.type} | `{k.default}` | {k.help} |" for k in describe_keys()])


def keys_help() -> str:
    """The same for ``--help``."""
    entries = []
    for k in describe_keys():
        kind = k.type.replace("\\|", "|")
        entries.append(f"  {k.name} ({kind}, default {k.default})\n      {k.help}")
    return "keys:\n" + "\n".join(entries)


if __name__ == "__main__":
    print(keys_markdown())
