"""Medians and their spread, the order of turns, and when two contenders are level."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values)


# By the number of rounds: the medians of two runs differ by less than this part of the larger one of their ranges in 99
# of 100 pairs of runs whose rounds differ by chance alone. Found by simulation, with a normal distribution.
_REACH: Final = {
    2: 5.54,
    3: 1.72,
    4: 1.05,
    5: 0.842,
    6: 0.666,
    7: 0.602,
    8: 0.514,
    9: 0.485,
    10: 0.428,
    15: 0.320,
    20: 0.255,
    30: 0.192,
}


def reach_of(values: Sequence[float]) -> float:
    """How far from their median that of another run may lie by chance; 0 for a single value, which says nothing.

    The range alone does not tell: of three rounds it is exceeded in one of ten pairs of runs, of seven hardly ever.
    """
    if len(values) < 2:
        return 0.0
    return _REACH[max(rounds for rounds in _REACH if rounds <= len(values))] * (max(values) - min(values))


def rounds_text(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def spread_of(values: Sequence[float]) -> float:
    """The reach of the median, as a part of it."""
    median = statistics.median(values)
    return reach_of(values) / abs(median) if median else 0.0


def ratios_of(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what slowed both of them down cancels out."""
    return [a / b if b else float("inf") for a, b in zip(above, below, strict=True)]


def turns(contenders: Sequence[T], rounds: range) -> Iterator[tuple[int, T]]:
    """The number of the round and who has its turn: the order is turned round from one round to the next."""
    for number in rounds:
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            yield number, contender


def are_level(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the medians of two runs are within the reach of one another."""
    return abs(median_of(one) - median_of(other)) <= max(reach_of(one), reach_of(other))


def are_level_by_rounds(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two contenders of a run are level: compared round by round, so that what slowed both down cancels out."""
    if len(one) != len(other):
        return are_level(one, other)
    differences = [(a - b) / (abs(a) + abs(b)) if a != b else 0.0 for a, b in zip(one, other, strict=True)]
    return abs(median_of(differences)) <= reach_of(differences)


class Ranking(NamedTuple):
    """Who is ahead, and those who are level with it, in the order of their medians."""

    best: str
    level: tuple[str, ...]


def rank(values: Mapping[str, Sequence[float]], *, lower_is_better: bool) -> Ranking | None:
    """None where there is nothing to compare: fewer than two contenders, or fewer than three rounds."""
    if len(values) < 2 or min(map(len, values.values())) < 3:
        return None
    medians = {name: median_of(found) for name, found in values.items()}
    order = sorted(medians, key=medians.__getitem__, reverse=not lower_is_better)
    best, *others = order
    return Ranking(best, tuple(name for name in others if are_level_by_rounds(values[best], values[name])))
