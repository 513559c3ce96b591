"""Line charts as SVG with a legend in HTML, for the result page; numbers alone where there is a single point."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 400, 190  # SVG units, axes and their numbers included
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 8, 20  # margins around the lines
POINTS = 200  # of a line; more would only be noise
COLOURS = ("#0072b2", "#d55e00", "#008060", "#aa3377", "#a07d00", "#777777")  # told apart by the colour-blind too
DIGITS = 4  # of the largest number of a chart; all others have as many decimals
CLOSE = 0.12  # of the axis: a number nearer to the last one would run into it

Points = Sequence[tuple[int, float]]  # (step, value)


def ticks(low: float, high: float) -> list[float]:
    """At least two round numbers at equal distances, the first at most ``low``, the last at least ``high``."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (0.2, 0.5, 1, 2) if span <= 5 * power * factor)
    first = math.floor(low / step)
    return [step * i for i in range(first, max(first + 1, math.ceil(high / step)) + 1)]


def step_ticks(first: int, last: int) -> list[float]:
    """Round steps within first..last and the last one itself: an axis that ends where the run does."""
    inner = [t for t in ticks(first, last) if first <= t < last - CLOSE * (last - first)]
    return [*inner, last]


def decimals(values: Sequence[float]) -> int:
    """Decimals with which the largest of ``values`` has ``DIGITS`` digits; 0 at least."""
    largest = max(map(abs, values))
    return max(0, DIGITS - 1 - math.floor(math.log10(largest))) if largest else 0


def thin(points: Points) -> Points:
    """At most ``POINTS`` points: means of as many neighbours as it takes, each at its last step."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def chart(title: str, series: Mapping[str, Points]) -> str:
    """A figure with the lines of ``series`` over the same steps, axes, and first, last, least and greatest values.

    Where every line is a single point, the values stand alone.
    """
    name = html.escape(title)
    steps = [step for points in series.values() for step, _ in points]
    if min(steps) == max(steps):
        return f"<figure><figcaption><b>{name}</b>, step {steps[0]}</figcaption>{_numbers(series)}</figure>"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{_drawn(series)}</svg>'
    return f"<figure><figcaption><b>{name}</b></figcaption>{svg}{_legend(series)}</figure>"


def _drawn(series: Mapping[str, Points]) -> str:
    lines = {name: thin(points) for name, points in series.items()}
    steps, values = zip(*(point for points in lines.values() for point in points), strict=True)
    first, last = min(steps), max(steps)
    y_ticks = ticks(min(values), max(values))
    places = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    drawn = [f'<text x="0" y="{HEIGHT - 5}">step</text>']
    for t in step_ticks(first, last):
        drawn.append(f'<text x="{x(t):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{t:.0f}</text>')
    for t in y_ticks:
        drawn.append(f'<text x="{LEFT - 5}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.{places}f}</text>')
        drawn.append(f'<path d="M{LEFT} {y(t):.1f}H{WIDTH - RIGHT}"/>')
    for colour, points in zip(_colours(series), lines.values(), strict=True):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        drawn.append(f'<polyline points="{path}" stroke="{colour}"/>')
        end_x, end_y = path.split()[-1].split(",")  # all that is seen of a line of one point
        drawn.append(f'<circle cx="{end_x}" cy="{end_y}" r="2.5" fill="{colour}"/>')
    return "".join(drawn)


def _colours(series: Mapping[str, Points]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(series))]


def _places(series: Mapping[str, Points]) -> int:
    return decimals([value for points in series.values() for _, value in points])


def _legend(series: Mapping[str, Points]) -> str:
    rows, places = ["<tr><th><th>first<th>last<th>least<th>greatest</tr>"], _places(series)
    for colour, (name, points) in zip(_colours(series), series.items(), strict=True):
        values = [value for _, value in points]
        numbers = "".join(f"<td>{value:.{places}f}" for value in (values[0], values[-1], min(values), max(values)))
        rows.append(f'<tr><td><i style="background:{colour}"></i>{html.escape(name)}{numbers}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _numbers(series: Mapping[str, Points]) -> str:
    places = _places(series)
    rows = (f"<tr><td>{html.escape(name)}<td>{points[-1][1]:.{places}f}</tr>" for name, points in series.items())
    return f"<table>{''.join(rows)}</table>"
