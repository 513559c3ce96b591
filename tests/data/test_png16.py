"""SYNTHIA's 16-bit labels: every encoding is read exactly; damage is an error and never kills the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.messages import DataError
from dataset.reading import read_raw_label
from tests.data.png import FILTERS, colour16

TRIALS = 60


def pixels(channels: int = 3) -> np.ndarray:
    """Every value of a 16-bit channel, in areas and at random."""
    values = np.random.default_rng(0).integers(0, 2**16, (23, 37, channels), np.uint16)
    values[:, :10, 0] = 7
    return values


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("filters", [*((kind,) for kind in FILTERS), FILTERS], ids=str)
def test_all_filters_and_interlacing_are_read_exactly(tmp_path, filters, channels, interlaced):
    expected = pixels(channels)
    found = read_raw_label(colour16(tmp_path / "a.png", expected, filters, interlaced), "synthia")
    assert found.dtype == np.uint16 and (found == expected[..., 0]).all()


def damaged(whole: bytes, how: str, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(whole)))
    if how == "truncation":
        return whole[:at]
    content = bytearray(whole)
    if how == "bit":
        content[at] ^= 1 << int(rng.integers(8))
    else:
        content[at // 4 * 4 : at // 4 * 4 + 4] = bytes(len(content[at // 4 * 4 : at // 4 * 4 + 4]))
    return bytes(content)


@pytest.mark.parametrize("how", ["bit", "word", "truncation"])
def test_damage_gives_the_right_values_or_an_error_that_names_the_file(tmp_path, how):
    expected, path = pixels(), tmp_path / "label.png"
    whole = colour16(path, expected, FILTERS).read_bytes()
    rng, refused = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        path.write_bytes(damaged(whole, how, rng))
        try:
            assert (read_raw_label(path, "synthia") == expected[..., 0]).all()
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= TRIALS - 2  # a word may be zero already


def test_only_pillow_decodes(tmp_path):
    colour16(tmp_path / "a.png", pixels())
    code = (
        "import sys; from pathlib import Path; from dataset.reading import read_raw_label; "
        f"read_raw_label(Path({str(tmp_path / 'a.png')!r}), 'synthia'); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
