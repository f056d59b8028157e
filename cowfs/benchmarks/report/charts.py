"""Charts in SVG, drawn by pygal: bars with their spread, distributions of latency, growth lines.

They are small, so that a phone shows them whole, and take their colours from the page (`--c0`, `--text`, ...). Their
style is the same, so it stands in the page once (`style`), and not in every chart.
"""

from __future__ import annotations

import html
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pygal
from pygal.style import Style

from cowfs.benchmarks.figures import median_of
from cowfs.benchmarks.report.text import figure_text
from cowfs.benchmarks.results import Latency, Line
from cowfs.units import format_size

# pygal leaves a finder for its maps, of an interface that Python has given up, and others who ask all finders fail.
sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]

COLOURS: Final = 12
_WIDTH: Final = 560
_BAR: Final = 30
_AROUND: Final = 74
_TALL: Final = 330
_ID: Final = "one"
_STYLE_SHEET: Final = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
_UNUSED: Final = re.compile(r'<style.*?</style>|<script.*?</script>|<desc.*?</desc>|<!--.*?-->| id="[^"]*"', re.DOTALL)
_PERCENTILES: Final = ("min", "p25", "p50", "p75", "p90", "p95", "p99", "max")


def style() -> str:
    """The style sheet of all charts."""
    chart = _chart(pygal.Line, _TALL)
    _add_by_colour(chart, {COLOURS - 1: [1]})
    found = _STYLE_SHEET.findall(_rendered(chart))
    return html.unescape("".join(found)).replace(f"#chart-{_ID}", ".pygal-chart")


def bars(line: Line, colours: Mapping[str, int]) -> str:
    """A bar for each contender: its median, with a line from its least to its most."""
    names = list(reversed(line.samples))  # the first on top
    most = max(max(values) for values in line.values().values())
    chart = _chart(
        pygal.HorizontalBar, len(names) * _BAR + _AROUND, range=(0, most * 1.04 or 1), x_title=line.figure.unit
    )
    chart.x_labels = names
    chart.y_labels = _ticks(most)
    chart.add(
        line.name,
        [
            {
                "value": line.median(name),
                "ci": {"low": min(line.values()[name]), "high": max(line.values()[name])},
                "style": f"fill: var(--c{colours[name]}); stroke: none",
            }
            for name in names
        ],
    )
    return _svg(chart)


def distribution(line: Line, colours: Mapping[str, int]) -> str | None:
    """The latency of single requests by percentile, median of the rounds; None where none was taken."""
    found: dict[str, list[float]] = {}
    for name, samples in line.samples.items():
        latencies = [sample.latency_us for sample in samples if sample.latency_us is not None]
        if latencies:
            found[name] = [max(_middle(latencies, field), 0.01) for field in _PERCENTILES]
    if not found:
        return None
    chart = _chart(pygal.Line, _TALL, logarithmic=True, y_title="us", dots_size=2.5)
    chart.x_labels = list(_PERCENTILES)
    everything = [value for values in found.values() for value in values]
    chart.y_labels = _decades(min(everything), max(everything))
    _add_by_colour(chart, {colours[name]: values for name, values in found.items()})
    return _svg(chart)


def growth(lines: Sequence[Line], x_unit: str, colours: Mapping[str, int]) -> str:
    """The figure of lines that differ in size or number alone, against it."""
    return _grown(lines, x_unit, lines[0].figure.unit, colours, Line.median)


def written_growth(lines: Sequence[Line], x_unit: str, colours: Mapping[str, int]) -> str | None:
    """What was written for each byte that was asked, against it; None where it was not counted."""
    if not any(line.written_for_each_byte(name) for line in lines for name in line.samples):
        return None
    return _grown(lines, x_unit, "bytes for each byte", colours, Line.written_for_each_byte)


def _grown(
    lines: Sequence[Line],
    x_unit: str,
    y_unit: str,
    colours: Mapping[str, int],
    value_of: Callable[[Line, str], float | None],
) -> str:
    """Both axes are logarithmic."""
    points: dict[int, list[tuple[float, float]]] = {}
    for line in lines:
        for name in line.samples:
            value = value_of(line, name)
            if line.x and value is not None and value > 0:
                points.setdefault(colours[name], []).append((line.x, value))
    values = [value for found in points.values() for _, value in found] or [1.0]
    chart = _chart(pygal.XY, _TALL, logarithmic=True, x_title=x_unit, y_title=y_unit, dots_size=3)
    chart.y_labels = _decades(min(values), max(values))
    text = format_size if x_unit.startswith("bytes") else figure_text
    chart.x_labels = [{"value": x, "label": text(x)} for x in sorted({int(line.x) for line in lines if line.x})]
    _add_by_colour(chart, points)
    return _svg(chart)


def _add_by_colour(chart: Any, values: Mapping[int, Sequence[Any]]) -> None:
    """pygal gives colours by the order of what is added."""
    for colour in range(max(values, default=-1) + 1):
        chart.add(str(colour), values.get(colour, []))


_STYLE: Final = Style(
    background="transparent",
    plot_background="transparent",
    foreground="var(--text)",
    foreground_strong="var(--text)",
    foreground_subtle="var(--dim)",
    guide_stroke_color="var(--line)",
    major_guide_stroke_color="var(--line)",
    guide_stroke_dasharray="0",
    major_guide_stroke_dasharray="0",
    font_family="system-ui, sans-serif",
    label_font_size=13,
    major_label_font_size=13,
    title_font_size=13,
    value_font_size=12,
    opacity="1",
    opacity_hover="1",
    transition="0s",
    colors=tuple(f"var(--c{number})" for number in range(COLOURS)),
)


def _chart(kind: Any, height: int, **options: Any) -> Any:
    return kind(
        style=_STYLE,
        width=_WIDTH,
        height=height,
        js=[],
        disable_xml_declaration=True,
        show_legend=False,
        show_y_guides=True,
        formatter=_value_text,
        value_formatter=figure_text,
        margin=6,
        margin_right=30,
        truncate_label=-1,
        **options,
    )


def _value_text(value: Any, *_: Any) -> str:
    """Of a point, which is a figure, or a place and a figure."""
    return figure_text(value[-1] if isinstance(value, list | tuple) else value)


def _svg(chart: Any) -> str:
    """Without what is the same in every chart, and without what pygal's script would show."""
    return _UNUSED.sub("", _rendered(chart))


def _rendered(chart: Any) -> str:
    chart.uuid = _ID
    return str(chart.render(is_unicode=True))


def _middle(latencies: Sequence[Latency], field: str) -> float:
    return median_of([getattr(latency, field) for latency in latencies])


def _ticks(most: float) -> list[float]:
    """Four or so round numbers from 0 on."""
    if most <= 0:
        return [0.0]
    power = 10 ** math.floor(math.log10(most / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if most / (factor * power) <= 5)
    return [step * number for number in range(int(most * 1.04 / step) + 1)]


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten around two numbers; where those are near each other, twos and fives as well."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    factors = (1, 2, 5) if high - low <= 2 else (1,)
    found = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
    below = [tick for tick in found if tick <= least]
    above = [tick for tick in found if tick >= most]
    return [tick for tick in found if max(below, default=found[0]) <= tick <= min(above, default=found[-1])]
