"""Errors that the user can correct, lines for the user, and helpers for names in them."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

SHOWN = 5  # names
LONGEST, SHORT = 1200, 300  # characters of a message: in all, and without its paths
ADVICE = 100  # characters at the end of a message that are kept if it is cut
MENDABLE = 2  # exit status
Report = Callable[[str], None]  # gets a line for the user
IN_LOADER = "Original Traceback"  # in a loader process's error, which DataLoader raises again with its traceback


def of_loader(text: str) -> str:
    """Message in the ``text`` of an error. A loader process's error has it in the last line of its traceback."""
    return text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2] if IN_LOADER in text else text


def printable(text: str) -> str:
    """``text`` on one line, with escape sequences for characters that cannot be printed."""
    line = " ".join(filter(None, map(str.strip, text.splitlines())))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class UserError(Exception):
    """An error that the user can correct. Its message is one line that names the file, key or image and the remedy.

    A program that ends with this error prints the line without a traceback (``dataset.program``). Quotations from
    files and command lines are made ``printable``.

    Attributes:
        status: exit status of that program.
        longest: characters of the message without paths. A longer message loses its middle: its end says what to do.
    """

    status = MENDABLE
    longest = 3 * SHORT

    def __str__(self) -> str:
        text = printable(of_loader(super().__str__()))
        room = min(self.longest + sum(len(word) for word in text.split() if "/" in word), LONGEST)
        return text if len(text) <= room else f"{text[: room - ADVICE]} ... {text[5 - ADVICE :]}"


class ChoiceError(UserError, ValueError):
    """An unknown name, or options that do not fit together."""


class DataError(UserError, RuntimeError):
    """A data set that cannot be used as it is; the message names the file and says what to do."""

    longest = SHORT


def few(names: Iterable[object], shown: int = SHOWN) -> str:
    """The first ``shown`` of the sorted ``names``, numbers by their value, and the number of the others."""
    ordered = sorted(map(str, names), key=lambda name: (int(name) if name.isdecimal() else -1, name))
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The entry of ``choices`` that is most similar to ``name``; "" if there are no choices."""
    return (get_close_matches(name, list(choices), n=1, cutoff=0) or [""])[0]
