"""Strategies of hypothesis that damage text, bytes and nested values, and the check of the results."""

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from dataset.messages import UserError

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis: pip install hypothesis")
st = hypothesis.strategies

FACTOR = float(os.environ.get("PYCDA_FUZZ", "0.4"))  # 10: 25 times as many trials


def _hashable(value: object) -> bool:
    return value == value  # False for NaN, which cannot be found again as a key


# Words that people and programs write by mistake, one per line, and characters that no line has.
SNIPPETS = (
    *"""'|"|#|:|: |- |? |>|&a |*a|<<: *a|!!int |!!python/object:os.system |!x |%TAG|[|]|{|}|[[|{}|[]|[1, 2, 3]|{a: b}
|,|=|==|../|/|~|---|...|null|true|no|on|.nan|-.inf|1e400|0x10|0o7|1_000|12:30:00|2020-01-01|-1|0|0.5|1e-4|é|٣|²
|base: x.yaml|common:|exp_name: a/../../b""".replace("\n", "").split("|"),
    *("", " ", "|", "\t", "\n", "\r\n", "\0", "\x1b", "\x85", "\u2028", "\ufeff", "\ufffe", "\U0001f600"),
    *(str(2**64), "9" * 5000, "a" * 5000),
)
ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 255, 2**31, 2**64, 10**400, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
    st.sampled_from(SNIPPETS),
    st.text(max_size=8),
)
TREES = st.recursive(
    ODD_VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_VALUES.filter(_hashable), inner, max_size=3),
    max_leaves=5,
)


def limited(trials: int) -> Callable:
    """Settings of a test with this number of examples, the same ones every time."""
    return hypothesis.settings(
        max_examples=max(1, round(FACTOR * trials)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def reads(read: Callable[[], object], *names: object) -> None:
    """Check that ``read`` succeeds or raises our error: one printable line with at least one of ``names``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except UserError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, f"several lines: {message!r}"
            assert any(str(name) in message for name in names), f"nothing is named: {message!r}"


def _edited(content: Any, edits: Sequence[tuple[str, float, float, Any]]) -> Any:
    """``content``, text or bytes, after all edits; positions are shares of its length."""
    for what, first, second, piece in edits:
        start, stop = sorted(round(share * len(content)) for share in (first, second))
        if what == "cut":
            content = content[:start]
        elif what == "delete":
            content = content[:start] + content[min(stop, start + 40) :]
        elif what == "repeat":
            content = content[:stop] + content[start:]
        elif what == "insert":
            content = content[:start] + piece + content[start:]
        else:
            content = content[:start] + piece + content[start + len(piece) :]
    return content


def _edits(pieces: Any) -> Any:
    share = st.floats(0, 1)
    what = st.sampled_from(["cut", "delete", "repeat", "insert", "replace", "replace", "insert"])
    return st.lists(st.tuples(what, share, share, pieces), min_size=1, max_size=3)


def damaged_text(original: str) -> Any:
    """Strategy: ``original`` with up to three damages, mostly within a line or at its end."""
    pieces = st.sampled_from(SNIPPETS) | st.text(max_size=3)
    words = st.tuples(st.floats(0, 1), pieces)

    def with_words(text: str, changes: Sequence[tuple[float, str]]) -> str:
        """Replace values of lines ``key: value``."""
        lines = text.split("\n")
        for share, piece in changes:
            number = min(int(share * len(lines)), len(lines) - 1)
            lines[number] = lines[number].partition(": ")[0] + ": " + piece
        return "\n".join(lines)

    return _edits(pieces).map(lambda edits: _edited(original, edits)) | st.lists(words, min_size=1, max_size=2).map(
        lambda changes: with_words(original, changes)
    )


def damaged_bytes(original: bytes) -> Any:
    """Strategy: ``original`` with up to three damages."""
    pieces = st.binary(min_size=1, max_size=4) | st.sampled_from([bytes(64), b"\xff" * 4, b"\n", b"\xff\xfe"])
    return _edits(pieces).map(lambda edits: _edited(original, edits))


def encoded(text: str) -> bytes:
    """UTF-8 with surrogates, as in file names."""
    return text.encode("utf-8", errors="surrogatepass")


def odd_tensors() -> Any:
    """Strategy: unexpected values of a checkpoint, also tensors."""
    shapes = st.sampled_from([(), (0,), (1,), (3,), (8,), (8, 3, 3, 3), (2, 2)])
    dtypes = [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8]
    tensors = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, st.sampled_from(dtypes))
    special = [torch.full((8,), math.nan), torch.eye(3).to_sparse(), torch.ones(8, requires_grad=True), b"x", (1, 2)]
    special += [torch.nn.Parameter(torch.ones(8)), torch.tensor(-5), torch.tensor(1e30), torch.zeros(8).expand(3, 8)]
    return tensors | st.sampled_from(special) | TREES


@st.composite
def damaged_state(draw: Callable, original: dict) -> dict:
    """Strategy: a copy of nested dictionaries and lists with something removed, renamed or replaced."""
    state = _copied(original)
    for _ in range(draw(st.integers(1, 2))):
        owner: Any = state
        while True:
            keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(owner[key], (dict, list)) and owner[key] and draw(st.integers(0, 4)):
                owner = owner[key]
                continue
            what = draw(st.sampled_from(["delete", "replace", "replace", "rename"]))
            value = owner[key]
            if what == "replace":
                owner[key] = draw(odd_tensors())
            else:
                del owner[key]
                if what == "rename" and isinstance(owner, dict):
                    owner[draw(ODD_VALUES.filter(_hashable))] = value
            break
    return state


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def saved(state: Any, zipped: bool = True) -> bytes:
    """Content of the file that torch writes."""
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def damaged_file(state: Any) -> Any:
    """Strategy: damaged bytes of a checkpoint: in today's format, in torch's before 1.6, or with correct checksums."""
    content = saved(state)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    index = next(name for name in entries if name.endswith("data.pkl"))

    def zipped(pickled: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, pickled if name == index else data)
        return stream.getvalue()

    below_checksums = damaged_bytes(entries[index]).map(zipped)
    return damaged_bytes(content) | damaged_bytes(saved(state, zipped=False)) | below_checksums
