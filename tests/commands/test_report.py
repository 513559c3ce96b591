"""The result page: complete, self-contained, and its numbers are those of the run."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import train_pycda
from dataset.labels import CITYSCAPES
from utils.commands import chart, report, report_images, report_numbers

LAYERS = ("pixels", "squares of 4x4 pixels", "squares of 8x8 pixels")


class Links(HTMLParser):
    """Every address that the page would fetch, and the nesting of its elements."""

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
    assert f'<li><i style="background:#{bytes(CITYSCAPES.palette[10]).hex()}"></i>sky' in page
    # The run's configuration, not the command line's.
    assert "<td>train.<wbr>momentum<td>0.5<td>0.9</tr>" in page and "conf_threshold: 0.5" in page
    lines = (tmp_path / "a <run>/log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if "source/total" in line]
    first, last = (record["source/total"] for record in (records[0], records[-1]))
    shown = [tuple(map(float, cells)) for cells in re.findall(r"</i>total<td>([\d.]+)<td>([\d.]+)<td>", page)]
    assert (pytest.approx(first, rel=1e-3), pytest.approx(last, rel=1e-3)) in shown
    rows = re.findall(r'</i>road<td>([\d.]+)<td>([\d.]+)<td class="(\w*)">([+-][\d.]+)', page)
    assert len(rows) == 1 and abs(float(rows[0][0]) - float(rows[0][1]) - float(rows[0][3])) < 0.011
    assert rows[0][2] == ("up" if float(rows[0][3]) > 0 else "down" if float(rows[0][3]) < 0 else "")
    means = re.findall(r'class="means"><td>([^<]+)<td>([\d.]+)<td>([\d.]+)', page)
    assert [name for name, _, _ in means[:3]] == ["mIoU, all 19 classes", "mIoU, 16 classes", "mIoU, 13 classes"]
    miou, before = (float(value) for value in means[0][1:])
    (verdict,) = re.findall(r'class="verdict">PyCDA: ([\d.]+) mIoU, ([+-][\d.]+) over [a-z ]+, 3 images<', page)
    assert float(verdict[0]) == pytest.approx(miou, abs=0.051)
    assert float(verdict[1]) == pytest.approx(miou - before, abs=0.061)
    visible = re.sub(r"<pre>.*?</pre>", "", page.split("</style>")[1], flags=re.DOTALL)
    assert str(tmp_path) not in visible and str(source_run) not in visible  # names, no paths of a machine
    assert "start <b>source_only</b>" in page and "seed <b>0</b>" in page and "<b>6 source, 6 target" in page
    assert "Images of the test set" in page and page.count('type="checkbox"') == 3 * len(captions)
    assert "the best," in page and "the worst," in page and "the most changed," in page
    assert "prefers-color-scheme: dark" in page


def test_page_of_a_run_alone(command, source_run, tmp_path):
    shutil.copytree(source_run, tmp_path / "alone")
    report.main(command(tmp_path, "alone"))
    page = (tmp_path / "alone/report.html").read_text()
    assert "baseline" not in page.split("</style>")[1] and "difference" not in page and "target step" not in page
    assert page.count("<svg") == 2  # losses, learning rate
    assert "most common classes, percent of the pixels</b>, step 2</figcaption><table>" in page  # at the only save
    assert "<b>Scores on the held-out target images, percent</b>, step 2</figcaption><table>" in page  # a single point


@pytest.mark.slow
def test_page_without_test_labels_shows_the_rest(command, city, source_run, tmp_path):
    shutil.copytree(city / "cityscapes/leftImg8bit/train", tmp_path / "data/leftImg8bit/train")
    keys = [f"target.data_dir={tmp_path}/data", f"model.weights={source_run}", "curriculum.conf_threshold=0.1"]
    arguments = command(tmp_path, "run", *keys)
    train_pycda.main(arguments)
    report.main(arguments)  # against what it started from, without being told
    page = (tmp_path / "run/report.html").read_text()
    assert "Scores on the test set" not in page and "Confusion matrix" not in page and "mIoU, all 19" not in page
    assert re.search(r'class="verdict">PyCDA, without test labels: predicts [a-z ]+ \d+ %', page)
    assert "Images of the target training set" in page and "prediction on the image" in page
    captions = re.findall(r"<figcaption>([^<]+)</figcaption>", page)
    assert "labels" not in captions and "prediction, baseline" in captions
    shares = re.findall(r"</i>([a-z ]+)<td>([\d.]+)<td>([\d.]+)<td>([\d.]+)<td>([\d.]+)<td", page)
    assert [name for name, *_ in shares] == list(CITYSCAPES.names)
    for column in zip(*(row[1:] for row in shares), strict=True):
        assert sum(map(float, column)) == pytest.approx(100, abs=0.1)


def test_images_are_the_best_the_worst_the_most_changed_and_some_between():
    own, before = report_images.Seen(2), report_images.Seen(2)
    label = torch.zeros(16, 16, dtype=torch.long)
    for i in range(9):
        prediction = (torch.arange(256).view(16, 16) < 20 * (i if i != 4 else 9)).long()
        own.add(f"image {i}", label, prediction)
        before.add(f"image {i}", label, 1 - prediction if i == 6 else prediction)
    own.add("void", torch.full((16, 16), 255), label)
    before.add("void", torch.full((16, 16), 255), label)
    reasons = report_images.choose(own, before)
    assert list(reasons) == ["image 0", "image 4", "image 6", "image 3"]
    assert reasons["image 0"].startswith("the best, ") and reasons["image 4"].startswith("the worst")
    assert reasons["image 6"].startswith("the most changed, 100 %")
    assert not report_images.choose(before, None)["image 6"].startswith("the most changed")


def test_confusion_is_in_percent_of_the_labels_and_leaves_absent_classes_out():
    counts = np.zeros((19, 19), int)
    counts[0, 0], counts[0, 10], counts[10, 10] = 30, 10, 7
    found = report_numbers.confusion_table(counts, CITYSCAPES)
    assert re.findall(r">(\d+)(?=<)", found) == ["75", "25", "100"] and found.count("<th><span>") == 2
    assert "building" not in found


def test_chart_is_drawn_to_scale():
    figure = chart.chart("a < b", {"loss": [(10, 4.0), (20, 2.0), (30, 3.0)], "other": [(30, 0.5)]})
    polylines = [points.split() for points in re.findall(r'points="([^"]+)"', figure)]
    lines = [[tuple(map(float, point.split(","))) for point in points] for points in polylines]
    xs, ys = zip(*lines[0], strict=True)
    left, right = chart.LEFT, chart.WIDTH - chart.RIGHT
    assert xs == (left, (left + right) / 2, right)
    assert ys[0] < ys[2] < ys[1]  # y grows downwards
    assert ys[0] == chart.TOP and abs((ys[0] + ys[1]) / 2 - ys[2]) < 0.1 and lines[1][0][0] == xs[2]
    assert "</i>loss<td>4.000<td>3.000<td>2.000<td>4.000</tr>" in figure and "a &lt; b" in figure  # aligned digits
    assert chart.COLOURS[0] in figure and figure.count("<circle") == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.13, 0.92, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2, 40, [0, 10, 20, 30, 40]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (5, 5, [5, 6]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert chart.ticks(low, high) == pytest.approx(expected)


def test_long_lines_are_thinned_to_means():
    points = chart.thin([(step, float(step % 2)) for step in range(1, 1001)])
    assert len(points) == chart.POINTS and points[0] == (5, 0.6) and points[-1] == (1000, 0.4)


def test_step_axis_ends_where_the_run_does():
    assert chart.step_ticks(20, 600) == [200, 400, 600] and chart.step_ticks(1, 570) == [200, 400, 570]
    figure = chart.chart("x", {"loss": [(20, 1.0), (570, 0.5)]})
    assert ">570</text>" in figure and ">600</text>" not in figure
    (points,) = re.findall(r'points="([^"]+)"', figure)
    assert points.split()[-1].startswith(f"{chart.WIDTH - chart.RIGHT:.1f},")


def test_single_point_is_a_number():
    figure = chart.chart("scores", {"mIoU": [(5, 41.26)], "other": [(5, 3.0)]})
    assert "<svg" not in figure and "step 5" in figure and "<td>mIoU<td>41.26</tr><tr><td>other<td>3.00" in figure
