"""The result page: complete, works offline, and shows the numbers of the run."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml

import train_pycda
from dataset.labels import CITYSCAPES
from utils.commands import report
from utils.commands.report_page import chart
from utils.config.schema import ConfigError

LAYERS = ("pixel", "square_4", "square_8")


class Links(HTMLParser):
    """Every address that the page would load, and the nesting of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]


@pytest.mark.slow
def test_page_of_a_run_against_its_baseline(command, source_run, tmp_path, capsys):
    arguments = command(tmp_path, "a <run>", f"model.weights={source_run}", "train.num_steps=2")
    train_pycda.main([*arguments, "train.momentum=0.5"])
    report.main([*arguments, "--baseline", str(source_run)])
    page = (tmp_path / "a <run>/report.html").read_text()
    assert str(tmp_path / "a <run>/report.html") in capsys.readouterr().out
    links = Links()
    links.feed(page)
    assert links.addresses and all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert "a &lt;run&gt;" in page and "<run>" not in page and "3 images" in page
    captions = ["image", "labels", "prediction, baseline", "prediction, this run", "confidence"]
    captions += [f"pseudo-labels, {layer}" for layer in LAYERS]
    assert re.findall(r"<figcaption>([^<]+)</figcaption>", page) == 3 * captions  # of all three test images
    # The run's configuration, not the command line's.
    assert "train.momentum: 0.5  (default: 0.9)" in page and "conf_threshold: 0.5" in page
    lines = (tmp_path / "a <run>/log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if "source/total" in line]
    first, last = (record["source/total"] for record in (records[0], records[-1]))
    shown = [tuple(map(float, cells)) for cells in re.findall(r"</i>total ([\d.]+) → ([\d.]+)<", page)]
    assert (pytest.approx(first, rel=1e-3), pytest.approx(last, rel=1e-3)) in shown
    (headings, cells) = re.search(r"<pre>( +baseline +this run)\n.*?\nmiou +(.*?)\n", page, re.DOTALL).groups()
    before, miou = (float(cell.rstrip("*")) for cell in cells.split())
    assert headings.split() == ["baseline", "this", "run"]
    (verdict,) = re.findall(r'class="verdict">PyCDA: ([\d.]+) mIoU, ([+-][\d.]+) over [a-z ]+, 3 images<', page)
    assert float(verdict[0]) == pytest.approx(miou, abs=0.051)
    assert float(verdict[1]) == pytest.approx(miou - before, abs=0.061)
    visible = re.sub(r"<details>.*?</details>", "", page.split("</style>")[1], flags=re.DOTALL)
    assert str(tmp_path) not in visible and str(source_run) not in visible  # names, no paths of a machine
    assert "start <b>source_only</b>" in page and "seed <b>0</b>" in page and "<b>6 source, 6 target" in page
    assert "Images of the test set" in page
    assert "prefers-color-scheme: dark" in page


def test_page_of_a_run_alone(command, source_run, tmp_path):
    shutil.copytree(source_run, tmp_path / "alone")
    report.main(command(tmp_path, "alone"))
    page = (tmp_path / "alone/report.html").read_text()
    assert "baseline" not in page.split("</style>")[1] and "target step" not in page
    assert page.count("<svg") == 2  # losses, learning rate
    assert "most common classes, percent of the pixels</b>, step 2</figcaption><p>" in page  # at the only save
    assert "<b>Scores on the held-out target images, percent</b>, step 2</figcaption><p>" in page  # a single point


@pytest.mark.slow
def test_page_without_test_labels_shows_the_rest(command, city, source_run, tmp_path):
    shutil.copytree(city / "cityscapes/leftImg8bit/train", tmp_path / "data/leftImg8bit/train")
    keys = [f"target.data_dir={tmp_path}/data", f"model.weights={source_run}", "curriculum.conf_threshold=0.1"]
    arguments = command(tmp_path, "run", *keys)
    train_pycda.main(arguments)
    report.main(arguments)  # the baseline is the start, without an option
    page = (tmp_path / "run/report.html").read_text()
    assert "Scores on the test set" not in page and "miou_16" not in page
    assert re.search(r'class="verdict">PyCDA, without test labels: predicts [a-z ]+ \d+ %', page)
    assert "Images of the target training set" in page
    captions = re.findall(r"<figcaption>([^<]+)</figcaption>", page)
    assert "labels" not in captions and "prediction, baseline" in captions
    shares = re.findall(r"^([a-z ]+?) +(\d+\.\d\d) +(\d+\.\d\d) +(\d+\.\d\d) +(\d+\.\d\d)", page, re.MULTILINE)
    assert [name for name, *_ in shares] == list(CITYSCAPES.names)
    for column in zip(*(row[1:] for row in shares), strict=True):
        assert sum(map(float, column)) == pytest.approx(100, abs=0.2)


def test_pseudo_labels_are_those_of_the_run_with_all_its_options(command, source_run, tmp_path):
    """They need no prior, so no source label is read."""
    shutil.copytree(source_run, tmp_path / "alone")
    path = tmp_path / "alone/config.yaml"
    keys = yaml.safe_load(path.read_text())
    options = {"image_target": "source", "lambda_eq": 0.4, "box_size": [2], "conf_threshold": 0.9}
    path.write_text(yaml.safe_dump(keys | {"curriculum": keys["curriculum"] | options}))
    report.main(command(tmp_path, "alone"))
    page = (tmp_path / "alone/report.html").read_text()
    assert set(re.findall(r"<figcaption>pseudo-labels, (\w+)", page)) == {"pixel", "square_2"}
    assert not list((tmp_path / "alone").glob("priors/spatial*"))


def test_chart_is_drawn_to_scale():
    figure = chart("a < b", {"loss": [(10, 4.0), (20, 2.0), (30, 3.0)], "other": [(30, 2.5)]})
    polylines = [points.split() for points in re.findall(r'points="([^"]+)"', figure)]
    lines = [[tuple(map(float, point.split(","))) for point in points] for points in polylines]
    xs, ys = zip(*lines[0], strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1]) and xs[0] < xs[1]
    assert ys[1] - ys[0] == pytest.approx(2 * (ys[2] - ys[0])) and ys[0] < ys[2]  # y grows downwards
    assert lines[1] == [(xs[2], pytest.approx((ys[2] + ys[1]) / 2))] and figure.count("<circle") == 2
    assert "</i>loss 4 → 3<" in figure and "</i>other 2.5 → 2.5<" in figure and "a &lt; b" in figure
    texts = re.findall(r"<text[^>]*>([^<]+)", figure)
    assert {"10", "20", "30", "2", "3", "4"} <= set(texts)  # steps and values of the axes


def test_long_lines_are_thinned_to_means():
    figure = chart("x", {"loss": [(step, float(step % 2)) for step in range(1000)]})
    (points,) = re.findall(r'points="([^"]+)"', figure)
    assert len(points.split()) <= 250


def test_single_point_is_a_number():
    figure = chart("scores", {"miou": [(5, 41.26)], "other": [(5, 3.0)]})
    assert "<svg" not in figure and "step 5" in figure and "</i>miou 41.26<" in figure and "</i>other 3<" in figure


def test_run_on_a_read_only_disk_is_refused_before_anything_is_computed(command, source_run, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the user of the tests may be root
    with pytest.raises(ConfigError, match=f"cannot write {source_run}/report.html: use sh run.sh compare"):
        report.main(command(source_run.parent, source_run.name))
