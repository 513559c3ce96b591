import numpy as np
import pytest

from dataset.labels import CITYSCAPES, IGNORE, SCORED_CLASSES, id_lookup


def test_cityscapes_table_covers_the_nineteen_classes_and_round_trips():
    table = id_lookup("cityscapes")
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert sorted(table[table != IGNORE]) == list(range(19))
    assert (table[CITYSCAPES.export_ids[:19]] == np.arange(19)).all()
    assert [table[i] for i in (7, 8, 11, 23, 33)] == [0, 1, 2, 10, 18]
    assert [table[i] for i in (0, 9, 29, 34, 255)] == [IGNORE] * 5
    assert (id_lookup("gtav") == table).all()


def test_export_never_writes_255():
    assert CITYSCAPES.export_ids.max() == 33 and CITYSCAPES.export_ids[IGNORE] == 0


def test_synthia_table_has_sixteen_classes():
    table = id_lookup("synthia")
    assert table.shape == (65536,)
    assert {CITYSCAPES.names[i] for i in table[:23] if i != IGNORE} == {CITYSCAPES.names[i] for i in SCORED_CLASSES[16]}
    assert (table[3], table[4], table[17], table[22], table[300]) == (0, 1, 12, IGNORE, IGNORE)
    assert set(SCORED_CLASSES[16]) - set(SCORED_CLASSES[13]) == set(CITYSCAPES.ids(["wall", "fence", "pole"]))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'bicycle'"):
        CITYSCAPES.ids(["bicycel"])
    with pytest.raises(ValueError, match="gtav"):
        id_lookup("gta5")
