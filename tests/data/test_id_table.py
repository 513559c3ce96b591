"""Id tables are read strictly: an error is one line that names the file and the mistake."""

import re
from itertools import pairwise

import numpy as np
import pytest
from yaml import YAMLError

from dataset.labels import id_lookup, known_ids, read_id_table
from dataset.messages import DataError, UserError
from utils.config.read import build_config, read_keys

A, B = "{name: a, colour: [0, 0, 0], ids: [0]}", "{name: b, colour: [9, 0, 0], ids: [1]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"classes: [{A}, {A.replace('ids: [0]', 'ids: [5]')}]", "two classes are called a"),
        (f"classes: [{A}, {B.replace('ids: [1]', 'ids: [0]')}]", "repeated: .0"),
        (f"classes: [{A}]\nvoid: [0]", "repeated: .0"),
        (f"classes: [{A}]\nviod: [9]", "unknown key 'viod'; the nearest is 'void'"),
        (f"classes: [{A}]\nclasses: [{B}]", "classes more than once"),
        (f"classes: [{A.replace('ids', 'id')}]", "unknown key 'id'; the nearest is 'ids'"),
        (f"classes: [{A.replace('ids: [0]', 'ids: [0], ids: [1]')}]", "ids more than once"),
        (f"classes: [{A.replace('[0, 0, 0]', '[300, 0, 0]')}]", r"colour of a is \[300, 0, 0\]"),
        (f"classes: [{A.replace('[0, 0, 0]', '[0, 0]')}]", r"colour of a is \[0, 0\]"),
        (f"classes: [{A.replace('[0, 0, 0]', 'red')}]", "colour of a must be a list"),
        (f"classes: [{A.replace('[0]', '[x]')}]", r"ids of a must be a list of whole numbers, got \['x'\]"),
        (f"classes: [{A.replace('[0]', '[256]')}]", "wrong: .256"),
        (f"classes: [{A.replace('name: a', 'name: ')}]", "the name of class 1 is ''"),
        ("classes:\n\t- x", "is not YAML, line 2: .*cannot start any token; indent with spaces"),
        ("classes: [[1]]", "class 1 is not a mapping"),
        ("classes: \x01", "is not YAML"),
        ('classes: "\\UFFFFFFFF"', "is not YAML"),
        ("- 1", "the table is not a mapping"),
        ("", "the table is not a mapping"),
        ("classes: " + 2000 * "[", "nested too deeply|is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_id_table(str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_aliases_of_aliases_are_refused(tmp_path):
    path = tmp_path / "t.yaml"
    uses = (f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]" for before, name in pairwise("abcdefgh"))
    path.write_text("\n".join(["a: &a [x, y]", *uses]))
    for read in (read_id_table, build_config):
        with pytest.raises(UserError, match="over 10000 values, by aliases of aliases"):
            read(str(path))
    with pytest.raises(YAMLError, match="by aliases of aliases"):
        read_keys(path.read_text())
    path.write_text("source: {crop_size: &size [64, 32]}\ntarget: {crop_size: *size}")
    assert build_config(path).target.crop_size == (64, 32)


def test_long_messages_keep_their_beginning_and_end():
    text = str(DataError(f"/a/file.png: {'x' * 10**6}: do this"))
    assert len(text) < 320 and re.fullmatch(r"/a/file.png: x+ \.\.\. x+: do this", text)
    assert len(str(DataError("/" * 2 * 10**4))) <= 1200


def test_words_that_yaml_takes_for_booleans_are_names(tmp_path):
    text = f"classes: [{A}, {B}]".replace("name: a", "name: no").replace("name: b", "name: off")
    (tmp_path / "t.yaml").write_text(text)
    assert read_id_table(str(tmp_path / "t.yaml"))[0].names == ("no", "off")


@pytest.mark.parametrize("content", [f"\ufeffclasses: [{A}]\nvoid:\n".encode(), f"classes: [{A}]\r\nvoid: []".encode()])
def test_byte_order_mark_and_empty_void_are_fine(tmp_path, content):
    (tmp_path / "t.yaml").write_bytes(content)
    assert np.flatnonzero(known_ids(str(tmp_path / "t.yaml"))).tolist() == [0, 255]


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "t.yaml").write_bytes(f"classes: [{A.replace('name: a', 'name: ä')}]".encode("latin-1"))
    with pytest.raises(DataError, match="t.yaml, line 1, is not UTF-8"):
        read_id_table(str(tmp_path / "t.yaml"))


def test_255_is_void_unless_a_class_names_it(tmp_path):
    for name, ids in (("masks", 255), ("plain", 1)):
        (tmp_path / f"{name}.yaml").write_text(f"classes: [{A}, {B.replace('[1]', f'[{ids}]')}]")
    masks, plain = (str(tmp_path / f"{name}.yaml") for name in ("masks", "plain"))
    assert id_lookup(masks)[[0, 255, 7]].tolist() == [0, 1, 255] and read_id_table(masks)[0].export_ids[1] == 255
    assert id_lookup(plain)[255] == 255 and known_ids(plain)[255]
