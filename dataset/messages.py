"""Errors that the user can mend, and names in their messages: the first of many, the one that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 5  # names
MENDABLE = 2  # exit status


class UserError(Exception):
    """What the user can mend. The message is one line that names the file, key or image, and says what to do.

    A program that ends by it prints that line, without a traceback (``dataset.failures``).

    Attributes:
        status: of that program.
    """

    status = MENDABLE


class ChoiceError(UserError, ValueError):
    """A name or a combination of options that does not exist or does not go together."""


class DataError(UserError, RuntimeError):
    """A data set that cannot be used as it is; the message names the file and says what to do."""


class IdTableError(DataError, ValueError):
    """A YAML id table that cannot be used; the message names the file."""


def few(names: Iterable[object], shown: int = SHOWN) -> str:
    """The first ``shown`` of ``names``, in order, and how many more there are."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The one of ``choices`` that looks most like ``name``; "" if there is none."""
    return (get_close_matches(name, list(choices), n=1, cutoff=0) or [""])[0]
