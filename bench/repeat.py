"""Do runs repeat? Medians that lie further apart than the spread that any of their runs states.

python -m bench.repeat RESULT.json...      results of `cowfs bench`, on one machine; exit status 1: some do not

What is stated with a median is how far from it that of another run may lie (docs/bench-format.md): by chance alone, one
pair in a hundred lies further apart. The same is asked of the ratios between contenders, round by round.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from cowfs.benchmarks.comparison import compare
from cowfs.benchmarks.figures import are_level, median_of, ratios_of, spread_of
from cowfs.benchmarks.report.text import figure_text, spread_text
from cowfs.benchmarks.results import Line, Result, read_result
from cowfs.errors import CowfsError

Key: TypeAlias = tuple[str, str, str]  # question, line, contender


def main(paths: Sequence[str]) -> int:
    if len(paths) < 2:
        print("python -m bench.repeat: give two results of 'cowfs bench --json' or more", file=sys.stderr)
        return 2
    try:
        results = [read_result(path) for path in paths]
        for other in results[1:]:
            compare(results[0], other, threshold=0.0)  # refuses other sizes, and questions of which none is the same
    except CowfsError as error:
        print(f"python -m bench.repeat: {error}", file=sys.stderr)
        return 2
    lines = lines_of(results)
    figures = {key: [line.values()[key[-1]] for line in found] for key, found in lines.items()}
    apart = outside(figures)
    for key in apart:
        question, name, contender = key
        print(
            f"{question} / {name} / {contender} [{lines[key][0].figure.unit}]: {', '.join(map(text_of, figures[key]))}"
        )
    ratios = ratios_between(lines)
    for question, name, contender in (apart_ratios := outside(ratios)):
        print(f"{question} / {name} / {contender}: {', '.join(map(text_of, ratios[question, name, contender]))}")
    for path, result in zip(paths, results, strict=True):
        if not result.is_quiet:
            print(f"{path}: {result.load_line()}")
    print(f"{len(apart)} of {len(figures)} medians lie outside the spread of one another")
    print(f"{len(apart_ratios)} of {len(ratios)} ratios of contenders lie outside the spread of one another")
    return 1 if apart or apart_ratios else 0


def lines_of(results: Sequence[Result]) -> dict[Key, list[Line]]:
    """The lines of every contender that all results have, by question, line and contender."""
    found: dict[Key, list[Line]] = {}
    for result in results:
        for question, line in every_line(result):
            for contender in line.samples:
                found.setdefault((question, line.name, contender), []).append(line)
    return {key: lines for key, lines in found.items() if len(lines) == len(results)}


def every_line(result: Result) -> Iterator[tuple[str, Line]]:
    for question in result.questions:
        yield from ((question.name, line) for line in question.lines)


def ratios_between(lines: Mapping[Key, Sequence[Line]]) -> dict[Key, list[Sequence[float]]]:
    """Of every contender to the last one of its line, round by round: to plain where that takes part."""
    found: dict[Key, list[Sequence[float]]] = {}
    for key, of_runs in lines.items():
        contender, last = key[-1], list(of_runs[0].samples)[-1]
        values = [line.values() for line in of_runs]
        if contender != last and all(all(one.get(last, [0.0])) for one in values):
            found[*key[:2], f"{contender} / {last}"] = [ratios_of(one[contender], one[last]) for one in values]
    return found


def outside(found: Mapping[Key, Sequence[Sequence[float]]]) -> list[Key]:
    """Those of which two runs are not level."""
    return [
        key for key, runs in found.items() if not all(itertools.starmap(are_level, itertools.combinations(runs, 2)))
    ]


def text_of(values: Sequence[float]) -> str:
    return f"{figure_text(median_of(values))} {spread_text(spread_of(values), len(values))}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
