"""A result as one HTML page that needs nothing else: a part for each question, with charts in SVG and all figures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cowfs.benchmarks.figures import median_of, rounds_text
from cowfs.benchmarks.report.charts import COLOURS, bars, distribution, growth, style, written_growth
from cowfs.benchmarks.report.details import details_of
from cowfs.benchmarks.report.text import details_text, figure_text, spread_text
from cowfs.benchmarks.results import Absent, Goal, Line, Question, Result, Sample
from cowfs.pool.counters import WriteAmplification
from cowfs.units import format_size

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c2733; --dim: #5c6874; --line: #dde3e8; --ground: #ffffff; --soft: #f4f6f8;
  --bad: #b3372a; --good: #27784c; --c0: #3f6fa5; --c1: #c8792b; --c2: #3d8f5b; --c3: #a5485f; --c4: #7a63ab;
  --c5: #8a6d4d; --c6: #3a97a3; --c7: #b8a12c; --c8: #6b7783; --c9: #c05a9b; --c10: #5f8f2f; --c11: #a03c2c; }
@media (prefers-color-scheme: dark) { :root { --text: #dfe6ec; --dim: #9aa7b3; --line: #323d48; --ground: #14191f;
  --soft: #1c232b; --bad: #e8695b; --good: #5dba87; --c0: #6f9fd0; --c1: #e09a54; --c2: #63b685; --c3: #d07a8f;
  --c4: #a48fd2; --c5: #b7977a; --c6: #63bfcb; --c7: #d9c452; --c8: #98a4b0; --c9: #dd85c0; --c10: #8fbf5f;
  --c11: #d46a58; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 1180px;
  margin: 0 auto; padding: 24px 18px 60px; }
h1 { font-size: 1.5em; margin: 0 0 .3em; } h2 { font-size: 1.2em; margin: 2.2em 0 .2em; padding-top: .6em;
  border-top: 2px solid var(--line); } h3 { font-size: 1em; margin: 1.6em 0 .2em; } p { margin: .3em 0 .8em; }
.dim { color: var(--dim); } .bad, .good { font-weight: 600; } .bad { color: var(--bad); } .good { color: var(--good); }
.note { background: var(--soft); border-left: 4px solid var(--line); padding: .5em .9em; border-radius: 4px; }
.note.bad { border-left-color: var(--bad); font-weight: 400; }
.grid { display: grid; gap: 8px 22px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 620px; } figcaption { color: var(--dim); font-size: .9em; }
svg { width: 100%; height: auto; display: block; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92em; width: 100%; } th { text-align: left; color: var(--dim);
  font-weight: 600; } td, th { padding: .22em .9em .22em 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name, .key { white-space: nowrap; } .key { margin-right: .8em; }
td.name::before, .key::before { content: ""; display: inline-block; width: .7em; height: .7em;
  margin-right: .5em; border-radius: 2px; background: var(--own, transparent); }
.ci .reactive, .ci { stroke: var(--text); } td.of { white-space: normal; min-width: 11em; }
.long { overflow-wrap: anywhere; }
@media (max-width: 600px) { table.who td, table.figures td { display: block; border: 0; padding: 0; }
  table.who tr, table.figures tr { display: block; border-bottom: 1px solid var(--line); padding: .4em 0; }
  table.who th, table.figures th { display: none; }
  table.figures td:not(.name) { display: inline-block; margin-right: 1em; text-align: left; }
  table.figures td:not(.name)::before { content: attr(data-title) ": "; color: var(--dim); }
  table.figures td:empty { display: none !important; } svg { overflow: visible; }
  body .pygal-chart text { font-size: 16px !important; } }
details { margin: .4em 0; } summary { cursor: pointer; color: var(--dim); }
code { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
nav { margin: 1em 0; } nav a { display: inline-block; margin: 0 .9em .2em 0; } a { color: var(--c0); }
@media print { body { max-width: none; padding: 0; font-size: 10px; } .wide { overflow: visible; }
  .grid { grid-template-columns: 1fr 1fr; } td.of { min-width: 0; } code { font-size: 9px; }
  td, th { padding-right: .5em; } td.n, th.n { white-space: normal; } h2 { margin-top: 1em; }
  .line, figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } nav, details { display: none; } }
"""


def page(result: Result) -> str:
    return "".join(_page(result))


def _page(result: Result) -> Iterator[str]:
    engines = [note.name for note in result.contenders]
    machine = result.machine
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"><title>cowfs bench</title>'
    yield f"<style>{style()}{_STYLE}</style></head><body><h1>Measured side by side</h1>"
    yield f'<p class="note{"" if result.is_quiet else " bad"}">{_text(result.load_line()[0].upper())}'
    yield f"{_text(result.load_line()[1:])}. A switch to another process took {result.switch_us:.1f} us.</p>"
    yield f"<p>{result.begun}, {result.seconds:.0f} s, {rounds_text(result.rounds)} in turns, seed {result.seed}, "
    yield f"cowfs {_text(result.cowfs)}. {_text(machine.processor)}, {machine.processors} processors, "
    yield f"{format_size(machine.memory_bytes)} of memory, Linux {_text(machine.kernel)}, {_text(machine.system)}, "
    yield f"Python {_text(machine.python)}. Files in {_text(result.place)}: {_text(machine.directory_filesystem)} "
    yield f'<span class="dim long">({_text(machine.directory_options)})</span>.</p>'
    yield '<p class="dim">Bars are medians of the rounds, with a line from the least to the most. The spread is how '
    yield "far the median of another run may lie by chance. A tie: two contenders differ by less, round by round. "
    yield "Contenders are compared only within one run.</p>"
    yield '<div class="wide"><table class="who"><tr><th>contender</th><th>what it is</th><th></th></tr>'
    for note in result.contenders:
        about = details_text(note)
        yield f"<tr>{_name(note.name, _colours(engines))}<td>{_text(note.title)}</td>"
        yield f'<td class="dim">{_text(about)}</td></tr>'
    for absent in result.missing:
        yield f'<tr><td class="name dim">{_text(absent.name)}</td><td class="dim">missing: {_text(absent.problem)}</td>'
        yield f'<td class="dim">{f"<code>{_text(absent.remedy)}</code>" if absent.remedy else ""}</td></tr>'
    yield "</table></div><nav>"
    for question in result.questions:
        yield f'<a href="#{_text(question.name)}">{_text(question.name)}</a>'
    yield "</nav>"
    for question in result.questions:
        own = [name for line in question.lines for name in line.samples]
        yield from _question(question, _colours([*engines, *own]), is_judged=result.is_quiet)
    yield "</body></html>\n"


def _colours(names: Iterable[str]) -> dict[str, int]:
    return {name: number % COLOURS for number, name in enumerate(dict.fromkeys(names))}


def _question(question: Question, colours: Mapping[str, int], *, is_judged: bool) -> Iterator[str]:
    yield f'<section id="{_text(question.name)}"><h2>{_text(question.title)}</h2>'
    if question.expectation:
        yield f"<p><b>Expected:</b> {_text(question.expectation)}</p>"
    yield "<details><summary>Sizes and seed</summary><table>"
    for key, value in question.parameters.items():
        yield f"<tr><th>{_text(key.replace('_', ' '))}</th><td><code>{_text(str(value))}</code></td></tr>"
    yield "</table></details>"
    for failed in question.failed:
        yield f'<p class="bad">{_text(failed.name)} failed: {_text(failed.problem)}</p>'
    yield from _without(question.absent)
    yield from _goals(question.goals)
    series: dict[str, list[Line]] = {}
    for line in question.lines:
        if line.series:
            series.setdefault(line.series, []).append(line)
    growing = {name: lines for name, lines in series.items() if len(lines) > 1}
    if growing:
        yield '<div class="grid">'
        for name, lines in growing.items():
            chart = growth(lines, question.x_unit, colours)
            names = dict.fromkeys(contender for line in lines for contender in line.samples)
            yield f"<figure><figcaption>{_text(name)}, by {_text(question.x_unit)}<br>{_legend(names, colours)}"
            yield f"</figcaption>{chart}</figure>"
            written = written_growth(lines, question.x_unit, colours)
            if written is not None:
                yield f"<figure><figcaption>{_text(name)}: written for each byte that was asked to be<br>"
                yield f"{_legend(names, colours)}</figcaption>{written}</figure>"
        yield "</div>"
    for line in question.lines:
        yield from _line(line, colours, is_judged=is_judged)
    yield "</section>"


def _without(absent: list[Absent]) -> Iterator[str]:
    for problem in dict.fromkeys(one.problem for one in absent):
        names = ", ".join(one.name for one in absent if one.problem == problem)
        yield f'<p class="dim">Without {_text(names)}: {_text(problem)}.</p>'


def _goals(goals: list[Goal]) -> Iterator[str]:
    if not goals:
        return
    yield '<div class="wide"><table><tr><th>goal</th><th class="n">found</th><th class="n">spread</th>'
    yield '<th class="n">wanted</th><th></th></tr>'
    for goal in goals:
        spread = "" if goal.spread is None else spread_text(goal.spread, 2)
        kind = "dim" if goal.is_met is None else "good" if goal.is_met else "bad"
        yield f'<tr><td>{_text(goal.name)}</td><td class="n">{figure_text(goal.value)}</td><td class="n">{spread}</td>'
        yield f'<td class="n">{_text(goal.bound)}</td><td class="{kind}">{goal.verdict}</td></tr>'
    yield "</table></div>"


def _line(line: Line, colours: Mapping[str, int], *, is_judged: bool) -> Iterator[str]:
    better = "less is better" if line.figure.lower_is_better else "more is better"
    unit = f'<span class="dim">{_text(line.figure.name)} in {_text(line.figure.unit)}, {better}</span>'
    yield f'<div class="line"><h3>{_text(line.name)} {unit}</h3>'
    yield _verdict(line, is_judged=is_judged)
    yield f'<div class="grid"><figure>{bars(line, colours)}</figure>'
    latency = distribution(line, colours)
    if latency is not None:
        yield f"<figure><figcaption>latency of single requests, by percentile</figcaption>{latency}</figure>"
    yield "</div>"
    yield from _table(line, colours)
    yield "</div>"
    yield from _counted(line, colours)


def _verdict(line: Line, *, is_judged: bool) -> str:
    if len(line.samples) < 2:
        return ""
    ranking = line.ranking()
    if not is_judged:
        return '<p class="dim">Not judged: others used the machine.</p>'
    if ranking is None:
        return '<p class="dim">Not judged: fewer than three rounds.</p>'
    if ranking.level:
        return f"<p>Best: {_text(ranking.best)}; a tie with {_text(', '.join(ranking.level))}.</p>"
    return f'<p>Best: <span class="good">{_text(ranking.best)}</span>.</p>'


_COLUMNS: Final = ("median", "spread", "p50", "p95", "p99", "max", "CPU", "memory", "space", "written", "of it")


def _table(line: Line, colours: Mapping[str, int]) -> Iterator[str]:
    rows = {name: dict(zip(_COLUMNS, _cells(line, name), strict=True)) for name in line.samples}
    shown = [column for column in _COLUMNS if any(row[column] for row in rows.values())]
    yield '<div class="wide"><table class="figures"><tr><th></th>'
    titles = {
        "CPU": "CPU ms",
        "memory": "peak memory",
        "space": "space on the host",
        "written": "written for each byte",
        "of it": "of it",
        **{name: f"{name} us" for name in ("p50", "p95", "p99", "max")},
    }
    for column in shown:
        yield f'<th class="{"of" if column == "of it" else "n"}">{titles.get(column, column)}</th>'
    yield "</tr>"
    for name, row in rows.items():
        yield f"<tr>{_name(name, colours)}"
        for column in shown:
            about = f'class="{"of" if column == "of it" else "n"}" data-title="{titles.get(column, column)}"'
            yield f"<td {about}>{_text(row[column])}</td>"
        yield "</tr>"
    yield "</table></div>"


def _counted(line: Line, colours: Mapping[str, int]) -> Iterator[str]:
    """All rows of `details_of`, closed at first."""
    found = list(details_of(line))
    if not found:
        return
    yield '<details><summary>All that was measured and counted, medians</summary><div class="wide"><table>'
    yield f"<tr><th></th>{''.join(_head(name, colours) for name in line.samples)}</tr>"
    for detail in found:
        yield f"<tr><th>{_text(detail.label)}</th>"
        for name in line.samples:
            known = detail.medians
            yield f'<td class="n">{figure_text(known[name]) if name in known else ""}</td>'
        yield "</tr>"
    yield "</table></div></details>"


def _cells(line: Line, name: str) -> list[str]:
    samples = line.samples[name]
    latencies = [sample.latency_us for sample in samples if sample.latency_us is not None]

    def latency(field: str) -> str:
        return figure_text(median_of([getattr(found, field) for found in latencies])) if latencies else ""

    cpu = [1000 * sample.cpu_seconds for sample in samples if sample.cpu_seconds is not None]
    memory = [sample.peak_memory_bytes for sample in samples if sample.peak_memory_bytes is not None]
    space = [sample.host_bytes[1] - sample.host_bytes[0] for sample in samples if sample.host_bytes is not None]
    written, causes = _written(samples)
    return [
        figure_text(line.median(name)),
        spread_text(line.spread(name), len(samples)),
        *map(latency, ("p50", "p95", "p99", "max")),
        figure_text(median_of(cpu)) if cpu else "",
        format_size(int(median_of(memory))) if memory else "",
        _grown(int(median_of(space))) if space and any(space) else "",
        written,
        causes,
    ]


def _grown(size_bytes: int) -> str:
    return f"{'+' if size_bytes > 0 else ''}{format_size(size_bytes)}"


def _written(samples: list[Sample]) -> tuple[str, str]:
    """Bytes written for each byte asked, and how much of it was copied, zeroed, metadata: where a contender knows."""
    found = [sample.write_amplification() for sample in samples]

    def middle(field: str) -> float | None:
        known = [value for one in found if (value := getattr(one, field)) is not None]
        return median_of(known) if known else None

    total, *causes = (middle(field) for field in WriteAmplification.__struct_fields__)
    names = WriteAmplification.__struct_fields__[1:]
    parts = [f"{name} {value:.2f}" for name, value in zip(names, causes, strict=True) if value]
    return ("" if total is None else f"{total:.2f}"), ", ".join(parts)


def _legend(names: Iterable[str], colours: Mapping[str, int]) -> str:
    return " ".join(f'<span class="key" style="--own: var(--c{colours[name]})">{_text(name)}</span>' for name in names)


def _head(name: str, colours: Mapping[str, int]) -> str:
    return f'<th class="n"><span class="key" style="--own: var(--c{colours[name]})">{_text(name)}</span></th>'


def _name(name: str, colours: Mapping[str, int]) -> str:
    return f'<td class="name" style="--own: var(--c{colours[name]})">{_text(name)}</td>'


def _text(text: str) -> str:
    return html.escape(text)
