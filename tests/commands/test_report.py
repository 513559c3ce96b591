"""The result page: complete, self-contained, and its numbers are those of the run."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import train_pycda
from dataset.labels import CITYSCAPES
from utils.commands import chart, report

LAYERS = ("pixel", "square_4", "square_8")


class Links(HTMLParser):
    """Every address that the page would fetch, and the nesting of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]


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
    first, last = (f"{record['source/total']:.4g}" for record in (records[0], records[-1]))
    assert f"</i>total<td>{first}<td>{last}<td>" in page
    rows = re.findall(r'</i>road<td>([\d.]+)<td>([\d.]+)<td class="(\w*)">([+-][\d.]+)', page)
    assert len(rows) == 1 and abs(float(rows[0][0]) - float(rows[0][1]) - float(rows[0][3])) < 0.011
    assert rows[0][2] == ("up" if float(rows[0][3]) > 0 else "down" if float(rows[0][3]) < 0 else "")


def test_page_of_a_run_alone(command, source_run, tmp_path):
    shutil.copytree(source_run, tmp_path / "alone")
    report.main(command(tmp_path, "alone"))
    page = (tmp_path / "alone/report.html").read_text()
    assert "baseline" not in page.split("</style>")[1] and "difference" not in page and "target step" not in page
    assert "Scores on the held-out target images" in page and page.count("<svg") == 3  # scores, losses, learning rate


def test_chart_is_drawn_to_scale():
    figure = chart.chart("a < b", {"loss": [(10, 4.0), (20, 2.0), (30, 3.0)], "other": [(30, 0.5)]})
    polylines = [points.split() for points in re.findall(r'points="([^"]+)"', figure)]
    lines = [[tuple(map(float, point.split(","))) for point in points] for points in polylines]
    xs, ys = zip(*lines[0], strict=True)
    left, right = chart.LEFT, chart.WIDTH - chart.RIGHT
    assert xs == (left, (left + right) / 2, right)
    assert ys[0] < ys[2] < ys[1]  # y grows downwards
    assert ys[0] == chart.TOP and abs((ys[0] + ys[1]) / 2 - ys[2]) < 0.1 and lines[1][0][0] == xs[2]
    assert "</i>loss<td>4<td>3<td>2<td>4</tr>" in figure and "a &lt; b" in figure
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
