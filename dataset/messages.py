"""Errors that the user can mend, and names in their messages: the first of many, the one that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 5  # names
LONGEST, SHORT, ADVICE = 1200, 300, 100  # characters of a message; beside its paths; of its end if it is cut
MENDABLE = 2  # exit status
IN_LOADER = "Original Traceback"  # in the error of a loader process, which DataLoader repeats with its traceback


def of_loader(text: str) -> str:
    """What an error says that may have come out of a loader process: the last line of its traceback, else ``text``."""
    return text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2] if IN_LOADER in text else text


def printable(text: str) -> str:
    """``text`` on one line, every character of which can be printed."""
    line = " ".join(filter(None, map(str.strip, text.splitlines())))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class UserError(Exception):
    """What the user can mend. The message is one line that names the file, key or image, and says what to do.

    A program that ends by it prints that line, without a traceback (``dataset.program``). What a message quotes from
    a file or a command line may be anything: line ends become spaces, what cannot be printed its escape sequence.

    Attributes:
        status: of that program.
        longest: characters beside paths; of a longer message the middle is left out, as its end says what to do.
    """

    status = MENDABLE
    longest = 3 * SHORT

    def __str__(self) -> str:
        text = printable(of_loader(super().__str__()))
        room = min(self.longest + sum(len(word) for word in text.split() if "/" in word), LONGEST)
        return text if len(text) <= room else f"{text[: room - ADVICE]} ... {text[5 - ADVICE :]}"


class ChoiceError(UserError, ValueError):
    """A name or a combination of options that does not exist or does not go together."""


class DataError(UserError, RuntimeError):
    """A data set that cannot be used as it is; the message names the file and says what to do."""

    longest = SHORT


def few(names: Iterable[object], shown: int = SHOWN) -> str:
    """The first ``shown`` of ``names``, in order, and how many more there are."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:shown]) + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The one of ``choices`` that looks most like ``name``; "" if there is none."""
    return (get_close_matches(name, list(choices), n=1, cutoff=0) or [""])[0]
