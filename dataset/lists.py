"""List files: one path, or an image path and its label path, a line."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from dataset.files import read_text
from dataset.messages import DataError, few


def read_list(path: str | Path, *, repeats: bool = False) -> list[str]:
    """Lines of a list file, without blank ones.

    Args:
        repeats: whether a line may be there several times, as people write who want rare classes seen more often.

    Raises:
        DataError: no such file, no line, not UTF-8, or a line that is repeated although it may not be.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no list file {path}")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path))]
    lines = [line for line in lines if line]
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated and not repeats:
        raise DataError(
            f"{path} lists {few(repeated)} more than once: remove the repetition (only training lists may repeat)"
        )
    if not lines:
        raise DataError(f"{path} lists no file")
    return lines


def write_list(images: list[Path], path: Path, root: str | Path) -> None:
    """Write image paths relative to ``root``, one a line, so that ``read_list`` reads them back."""
    lines = "".join(f"{os.path.relpath(image, root)}\n" for image in images)
    path.write_text(lines, encoding="utf-8", errors="surrogateescape")


def split_pair(line: str, exists: Callable[[str], bool], list_file: str | Path) -> tuple[str, str | None]:
    """(image, label) of a line of a pair list, the label None where the line is an image alone.

    A tab separates. Without one, the line is an image alone where such a file exists, and is otherwise cut at the white
    space that leaves two files; paths may have spaces.

    Raises:
        DataError: more than one tab, or several ways to cut the line.
    """
    if "\t" in line:
        parts = [part.strip() for part in line.split("\t") if part.strip()]
        if len(parts) != 2:
            raise DataError(f"{list_file} has the line {line!r}: one tab separates the image from its label")
        return parts[0], parts[1]
    ways: list[tuple[str, str | None]] = [(line, None)] if exists(line) else []
    ways += [cut for cut in _cuts(line) if exists(cut[0]) and exists(cut[1])]
    if len(ways) > 1:
        raise DataError(f"{list_file} has the line {line!r}, which can be read in {len(ways)} ways: put a tab between")
    if ways:
        return ways[0]
    cuts = list(_cuts(line))
    # What is named as missing: the parts of the only cut, or of a cut whose image or label exists, or the whole line.
    likely = cuts if len(cuts) == 1 else [cut for cut in cuts if exists(cut[0]) or exists(cut[1])]
    return likely[0] if likely else (line, None)


def _cuts(line: str) -> Iterator[tuple[str, str]]:
    for gap in re.finditer(r"\s+", line):
        yield line[: gap.start()], line[gap.end() :]
