"""The result page: complete, self-contained, and its numbers are those of the run."""

import json
import re
from html.parser import HTMLParser

import train_pycda
from utils import report


class Links(HTMLParser):
    """Every address that the page would fetch, and the nesting of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]


def test_page_of_a_run_against_its_baseline(command, source_run, tmp_path, capsys):
    arguments = command(tmp_path, "a <run>", f"model.weights={source_run}", "train.num_steps=2")
    train_pycda.main(arguments)
    report.main([*arguments, "--baseline", str(source_run)])
    page = (tmp_path / "a <run>/report.html").read_text()
    assert str(tmp_path / "a <run>/report.html") in capsys.readouterr().out
    links = Links()
    links.feed(page)
    assert links.addresses and all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert "a &lt;run&gt;" in page and "<run>" not in page
    for part in ("target/pixel", "target/labelled/square_8", "pseudo-labels: square_4", "confidence", "conf_threshold", "viewport"):
        assert part in page, part
    last = [json.loads(line) for line in (tmp_path / "a <run>/log.jsonl").read_text().splitlines() if "source/total" in line][-1]
    assert f"source/total: {last['source/total']:.4g} at step 2" in page
    rows = re.findall(r"<td>road<td>([\d.]+)<td>([\d.]+)<td>([+-][\d.]+)", page)
    assert len(rows) == 1 and abs(float(rows[0][0]) - float(rows[0][1]) - float(rows[0][2])) < 0.011


def test_curve_is_drawn_to_scale():
    figure = report.curve("loss", [(10, 4.0), (20, 2.0), (30, 3.0)])
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', figure).group(1).split()]
    xs, ys = zip(*points, strict=True)
    assert xs == (0, report.WIDTH / 2, report.WIDTH) and ys[0] < ys[2] < ys[1]  # y grows downwards
    assert abs((ys[0] + ys[1]) / 2 - ys[2]) < 0.1 and "3 at step 30 (range 2 to 4)" in figure
    assert "points=" in report.curve("one value", [(5, 1.0)])
