"""How a key is declared: its default, its meaning, and the values that it may have."""

import math
from dataclasses import dataclass, field
from typing import Any

from dataset.messages import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True)
class Limits:
    """An interval; its ends belong to it unless ``above`` or ``below`` says otherwise."""

    low: float
    high: float = math.inf
    above: bool = False  # without low
    below: bool = False  # without high

    def __contains__(self, value: float) -> bool:
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if not self.above and not self.below and self.high < math.inf:
            return f"{self.low:g} to {self.high:g}"
        parts = [f"{'above' if self.above else 'at least'} {self.low:g}"]
        if self.high < math.inf:
            parts.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts)


COUNT, POSITIVE = Limits(0), Limits(1)  # of things: any number, or one at least
WEIGHT = Limits(0)  # of a loss, or a rate: 0 switches it off
ABOVE_0 = Limits(0, above=True)
SHARE = Limits(0, 1)
FRACTION = Limits(0, 1, below=True)
MOMENTUM = Limits(0, 1, above=True)  # of a running average, which never moves by 0
ANGLE = Limits(-180, 180)  # degrees
CLASSES = Limits(1, 254)  # train ids are 8 bits, two of which mean other things


def key(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    *,
    within: Limits | None = None,
    path: bool = False,
    needs_one: bool = False,
) -> Any:
    """A configuration key with its default and meaning.

    Args:
        choices: all values, where they are a closed set of names.
        within: the numbers that it may have; of a tuple, each of its entries.
        path: of a file or folder, in which a leading ``~`` is the home folder.
        needs_one: a tuple that must not be empty.
    """
    metadata = {"help": help, "choices": choices, "within": within, "path": path, "needs_one": needs_one}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
