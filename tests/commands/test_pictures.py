"""Names in pictures are readable in any language."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from dataset.labels import ClassTable
from utils.scoring import pictures


def drawn(name: str) -> list[Image.Image]:
    """All pictures that name a class."""
    table = ClassTable((name,), np.zeros((1, 3), np.uint8), np.zeros(256, np.uint8))
    sheet = pictures.confusion_picture(np.ones((1, 1)), table)
    return [pictures.legend(table, 300), pictures.titled({name: Image.new("RGB", (99, 9))}), sheet]


def same(one: str, other: str) -> list[bool]:
    return [ImageChops.difference(*pair).getbbox() is None for pair in zip(drawn(one), drawn(other), strict=True)]


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine that has only Pillow's font."""
    monkeypatch.setattr(pictures, "FONTS", ())
    pictures.drawable.cache_clear()
    yield
    pictures.drawable.cache_clear()


def test_letters_beyond_ascii_are_no_boxes():
    assert same("\u00e4", "\u00f6") == same("Gr\u00fcn", "Gr\u00e4n") == [False] * 3


@pytest.mark.parametrize(
    ("name", "ascii_name"),
    [
        ("Geb\u00e4ude", "Gebaude"),
        ("Stra\u00dfe", "Strasse"),
        ("A\u0308cker", "Acker"),
        ("\u0142\u00f3d\u017a", "lodz"),
    ],
)
def test_letters_that_no_font_has_are_transliterated(no_fonts, name, ascii_name):
    assert same(name, ascii_name) == [True] * 3
    assert same("\u4e2d", "?") == [True] * 3 and same("\u0416", "Zhe") == [True] * 3


def test_bars_of_a_histogram_are_as_high_as_the_shares():
    colours = np.array([[250, 0, 0], [0, 250, 0]], np.uint8)
    table = ClassTable(("one", "other"), colours, np.zeros(256, np.uint8))
    sheet = np.asarray(pictures.histogram(np.array([0.25, 0.75]), np.array([0.5, 0.5]), table, 200))
    low, high = ((sheet == colour).all(2).any(1).sum() for colour in colours)
    assert high == pytest.approx(3 * low, abs=9)


def test_pseudo_labels_are_coloured_and_the_rest_is_black():
    table = ClassTable(("one", "other"), np.array([[250, 0, 0], [0, 250, 0]], np.uint8), np.zeros(256, np.uint8))
    label, mask = torch.tensor([[[0, 1]]]), torch.tensor([[[True, False]]])
    (picture,) = pictures.pseudo_label_maps({"pixel": (label, label, mask)}, table).values()
    picture = picture.resize((4, 2), Image.Resampling.NEAREST)
    assert np.asarray(picture).tolist() == [[[250, 0, 0]] * 2 + [[0, 0, 0]] * 2] * 2
