"""Runs of blocks of a volume."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Run(NamedTuple):
    """`length` blocks of the volume from `physical`."""

    physical: int
    length: int


def blocks_within(blocks: Collection[int], runs: Iterable[Run]) -> list[int]:
    """Those of some blocks that lie in one of some runs, which do not overlap."""
    if not blocks:
        return []
    ordered = sorted(runs)
    begins = [run.physical for run in ordered]
    found = []
    for block in blocks:
        index = bisect_right(begins, block) - 1
        if index >= 0 and block < begins[index] + ordered[index].length:
            found.append(block)
    return found
