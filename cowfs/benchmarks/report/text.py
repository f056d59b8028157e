"""A result as text: a table for each question, its lines in rows and its contenders in columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from cowfs.benchmarks.figures import rounds_text
from cowfs.benchmarks.report.details import details_of
from cowfs.benchmarks.results import ContenderNote, Line, Question, Result
from cowfs.units import format_size

_GAP = "  "
_BEST = "*"


def head_lines(result: Result) -> Iterator[str]:
    """The machine, its load, who takes part, and who does not."""
    machine = result.machine
    yield f"{result.load_line()}; a switch to another process takes {result.switch_us:.1f} us"
    yield f"{machine.processor}, {machine.processors} processors, {format_size(machine.memory_bytes)} of memory"
    yield f"Linux {machine.kernel}, {machine.system}, Python {machine.python}, cowfs {result.cowfs}"
    yield f"files are in {result.place}: {machine.directory_filesystem} ({machine.directory_options})"
    yield f"{result.begun}, {rounds_text(result.rounds)} in turns, seed {result.seed}"
    width = max((len(note.name) for note in result.contenders), default=0)
    for note in result.contenders:
        yield f"  {note.name.ljust(width)}  {note.title}"
        if note.details:
            yield f"  {' ' * width}  ({details_text(note)})"
    for absent in result.missing:
        yield f"  without {absent.name}: {absent.problem}{f'; try: {absent.remedy}' if absent.remedy else ''}"


def details_text(note: ContenderNote) -> str:
    """Versions, mount options and what else a contender says of itself, as one line."""
    return "; ".join(f"{key}: {value}" for key, value in note.details.items() if value)


def question_lines(question: Question, *, is_judged: bool, width: int, with_details: bool = False) -> Iterator[str]:
    """A question's figures: medians, and their spread as `+-`. The best, and those level with it, have a star.

    Lines of the same contenders are one table.

    Args:
        with_details: with all that was measured and counted, not only the figures and what was written.
    """
    yield f"{question.name}: {question.title}"
    for names, lines in itertools.groupby(question.lines, key=lambda line: tuple(line.samples)):
        rows = [
            cells
            for line in lines
            for cells in (
                *_rows(line, names, is_judged),
                *(_details(line, names) if with_details else _written(line, names)),
            )
        ]
        for part in _parts(rows, ["", *names], width):
            yield from part
    for goal in question.goals:
        spread = "" if goal.spread is None else f" {spread_text(goal.spread, 2)}"
        yield f"  goal: {goal.name} = {figure_text(goal.value)}{spread}, wanted {goal.bound}: {goal.verdict}"
    for absent in question.failed:
        yield f"  {absent.name} failed: {absent.problem}"
    for problem in dict.fromkeys(absent.problem for absent in question.absent):
        lacking = [absent.name for absent in question.absent if absent.problem == problem]
        yield f"  without {', '.join(lacking)}: {problem}"


def summary_line(result: Result) -> str:
    judged = f"{_BEST} the best, or level with it within the spread" if result.is_quiet else result.load_line()
    return f"{result.seconds:.0f} s. {judged}."


def _rows(line: Line, names: Sequence[str], is_judged: bool) -> Iterator[list[str]]:
    ranking = line.ranking() if is_judged else None
    stars = () if ranking is None else (ranking.best, *ranking.level)
    unit = f"{line.name} [{line.figure.unit}]"
    yield [f"  {unit}", *(_cell(line, name, stars) for name in names)]


def _written(line: Line, names: Sequence[str]) -> Iterator[list[str]]:
    written = {name: line.written_for_each_byte(name) for name in line.samples}
    if any(found is not None for found in written.values()):
        cells = ["" if (found := written.get(name)) is None else f"{found:.2f}  " for name in names]
        yield ["    written for each byte asked", *cells]


def _details(line: Line, names: Sequence[str]) -> Iterator[list[str]]:
    for detail in details_of(line):
        known = detail.medians
        yield [f"    {detail.label}", *(f"{figure_text(known[name])}  " if name in known else "" for name in names)]


def _cell(line: Line, name: str, stars: Sequence[str]) -> str:
    if name not in line.samples:
        return ""
    star = _BEST if name in stars else " "
    return f"{figure_text(line.median(name))} {spread_text(line.spread(name), len(line.samples[name]))}{star}"


def figure_text(value: float) -> str:
    """Three significant digits, or all those before the point: 1,234 and 12.3 and 0.00123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread_text(spread: float, rounds: int) -> str:
    return f"+-{spread:.0%}" if rounds > 1 else ""


def _parts(rows: Sequence[Sequence[str]], header: Sequence[str], width: int) -> Iterator[list[str]]:
    """The table, in as many parts as the width takes, each with the first column."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    first, column = widths[0], 1
    while column < len(header):
        end, used = column, first
        while end < len(header) and (end == column or used + len(_GAP) + widths[end] <= width):
            used += len(_GAP) + widths[end]
            end += 1
        yield [
            _GAP.join([row[0].ljust(first), *(row[at].rjust(widths[at]) for at in range(column, end))]).rstrip()
            for row in table
        ]
        column = end
