"""Wrong configurations, overrides, released YAML files, id tables and list files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dataset.folders import find_samples, read_list
from dataset.labels import read_id_table
from dataset.priors import load_class_prior
from tests.fuzz.mutations import SNIPPETS, TREES, damaged_bytes, damaged_text, encoded, hypothesis, limited, reads, st
from utils.config.command_line import load_config
from utils.config.official import RENAMED, SCRIPTS
from utils.config.read import ROOT, build_config, to_yaml
from utils.config.schema import Config
from utils.config.values import KEYS

pytestmark = pytest.mark.slow

EVERY_KEY = to_yaml(Config())
RECIPE = (ROOT / "cfgs/pycda_exp001.yaml").read_text()
RELEASED = yaml.safe_dump(
    {
        "common": {
            **{"arch_encoder": "resnet101_dilated8", "arch_decoder": "ppm_bilinear_deepsup", "num_classes": 19},
            **{"input_size": [1280, 720], "scale_min": 0.5, "scale_max": 1.5, "rotate_min": -10, "rotate_max": 10},
            **{"decrease_lr": -1, "num_steps": 100, "ignore_label": 255, "weights_encoder": "", "box_size": [4, 8]},
        },
        "train": {"num_workers": 1},
    }
)
TABLE = """classes:
  - {name: road, colour: [128, 64, 128], ids: [7, 8]}
  - name: sky
    colour: [70, 130, 180]
    ids: [23]
void: [0, 1]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def loads(path: Path, *overrides: str, script: str = "train_pycda", twice: bool = True) -> None:
    """Read the configuration like a script. ``twice``: also write it, read it again and compare."""

    def load() -> None:
        config = load_config(["--config", str(path), *overrides], None, script)
        if not twice:
            return
        again = path.with_name("again.yaml")
        again.write_text(to_yaml(config), encoding="utf-8")
        assert to_yaml(build_config(again, script=script)) == to_yaml(config)

    reads(load, path, "command line", *KEYS)


@limited(80)
@hypothesis.given(text=(damaged_text(RECIPE) | damaged_text(EVERY_KEY)).map(encoded) | st.binary(max_size=40))
def test_configuration(place, text):
    path = place / "config.yaml"
    path.write_bytes(text)
    loads(path)


@limited(120)
@hypothesis.given(key=st.sampled_from(sorted(KEYS)), value=TREES)
def test_value_of_a_key(place, key, value):
    path = place / "value.yaml"
    for name in reversed(key.split(".")):
        value = {name: value}
    try:
        path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    except ValueError:  # Python's own limit of digits
        hypothesis.reject()
    loads(path)


ODD_TEXTS = st.sampled_from(SNIPPETS) | st.text(max_size=8) | st.floats().map(repr)
PAIRS = st.tuples(st.sampled_from(sorted(KEYS)), ODD_TEXTS).map("=".join)
ARGUMENTS = PAIRS | PAIRS | ODD_TEXTS | st.tuples(st.sampled_from(sorted(KEYS)), ODD_TEXTS, ODD_TEXTS).map("=".join)


@limited(120)
@hypothesis.given(argument=ARGUMENTS)
def test_override(place, argument):
    path = place / "plain.yaml"
    path.write_text("num_classes: 19\n")
    hypothesis.assume(not argument.startswith("-"))  # an option; argparse may print the help and exit
    loads(path, argument, twice=False)


@limited(80)
@hypothesis.given(
    text=damaged_text(RELEASED).map(encoded),
    script=st.sampled_from(sorted(SCRIPTS)),
)
def test_released_yaml(place, text, script):
    path = place / "released.yaml"
    path.write_bytes(text)
    loads(path, script=script)


@limited(120)
@hypothesis.given(
    keys=st.dictionaries(st.sampled_from([*RENAMED, "decrease_lr", "arch_decoder", "scale_min", "scale_max"]), TREES),
    script=st.sampled_from(sorted(SCRIPTS)),
)
def test_values_of_released_keys(place, keys, script):
    path = place / "values.yaml"
    try:
        path.write_text(yaml.safe_dump({"common": keys}), encoding="utf-8", errors="surrogatepass")
    except ValueError:
        hypothesis.reject()
    loads(path, script=script)


@limited(200)
@hypothesis.given(text=damaged_text(TABLE).map(encoded) | damaged_bytes(TABLE.encode()) | TREES.map(repr).map(encoded))
def test_id_table(place, text):
    path = place / "table.yaml"
    path.write_bytes(text)
    reads(lambda: read_id_table.__wrapped__(str(path)), path)


@limited(200)
@hypothesis.given(data=st.data())
def test_list_file(city, place, data):
    """A list of pairs, and a list of a data set's images with a list of its labels."""
    path, labels = place / "list.txt", place / "labels.txt"
    pairs = "".join(f"images/0000{n}.png labels/0000{n}.png\n" for n in range(1, 5))
    images = "".join(f"0000{n}.png\n" for n in range(1, 5))
    kinds: list[tuple[str, Callable[[], object]]] = [
        (pairs, lambda: find_samples("list", city / "gtav", data_list=path)),
        (images, lambda: find_samples("gtav", city / "gtav", data_list=path, repeats=True)),
        (images, lambda: find_samples("gtav", city / "gtav", data_list=path, label_list=labels)),
    ]
    text, find = data.draw(st.sampled_from(kinds))
    labels.write_text(images)
    content = data.draw(damaged_text(text).map(encoded) | damaged_bytes(text.encode()))
    path.write_bytes(content)
    reads(lambda: read_list(path), path)
    reads(find, path, labels, city)


@limited(60)
@hypothesis.given(text=damaged_text("0.5 0.25\n0.25\n").map(encoded) | st.binary(max_size=20))
def test_class_prior(place, text):
    path = place / "prior.txt"
    path.write_bytes(text)
    reads(lambda: load_class_prior(path, 3), path)
