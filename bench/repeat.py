"""Do runs repeat? Medians that lie further apart than any of their runs' spread.

python -m bench.repeat RESULT.json...      results of `cowfs bench`, on one machine; exit status 1: some do not

A run states with each median the spread of its rounds, (largest - smallest) / median. Two medians repeat where their
difference is within the larger one of the two spreads.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

from cowfs.benchmarks.comparison import compare
from cowfs.benchmarks.report.text import figure_text, spread_text
from cowfs.benchmarks.results import Line, Result, read_result
from cowfs.errors import CowfsError


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
    total, apart = 0, []
    for key, lines in lines_of(results).items():
        total += 1
        if any(are_apart(one, other, key[-1]) for one, other in itertools.combinations(lines, 2)):
            apart.append((key, lines))
    for (question, name, contender), lines in apart:
        found = (
            f"{figure_text(line.median(contender))} {spread_text(line.spread(contender), len(line.samples[contender]))}"
            for line in lines
        )
        print(f"{question} / {name} / {contender} [{lines[0].figure.unit}]: {', '.join(found)}")
    for path, result in zip(paths, results, strict=True):
        if not result.is_quiet:
            print(f"{path}: {result.load_line()}")
    print(f"{len(apart)} of {total} medians lie outside the spread of one another")
    return 1 if apart else 0


def lines_of(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Line]]:
    """The lines of every contender that all results have, by question, line and contender."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for result in results:
        for question, line in every_line(result):
            for contender in line.samples:
                found.setdefault((question, line.name, contender), []).append(line)
    return {key: lines for key, lines in found.items() if len(lines) == len(results)}


def every_line(result: Result) -> Iterator[tuple[str, Line]]:
    for question in result.questions:
        yield from ((question.name, line) for line in question.lines)


def are_apart(one: Line, other: Line, contender: str) -> bool:
    spreads = [line.spread(contender) * line.median(contender) for line in (one, other)]
    return abs(one.median(contender) - other.median(contender)) > max(spreads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
