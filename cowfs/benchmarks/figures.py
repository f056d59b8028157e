"""Medians and their spread, the order of turns, and when two contenders are level."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread_of(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    median = statistics.median(values)
    return (max(values) - min(values)) / median if median else 0.0


def ratios_of(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what slowed both of them down cancels out."""
    return [a / b if b else float("inf") for a, b in zip(above, below, strict=True)]


def turns(contenders: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """The number of the round, from 0, and who has its turn: the order is turned round from one round to the next."""
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            yield number, contender


def are_level(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the ranges of two contenders overlap: then their difference is within the spread."""
    return max(min(one), min(other)) <= min(max(one), max(other))


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
    return Ranking(best, tuple(name for name in others if are_level(values[best], values[name])))
