"""What effects do to an operation, on a disk and on a request alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cowfs.errors import OutOfDataSpace
from cowfs.faults.plan import Crash, Error, Flip, Lose, NoSpace, PoolMode, PoolModeName, Short, Tear
from cowfs.faults.rules import ActiveRule
from cowfs.units import SECTOR_BYTES

Failure: TypeAlias = Callable[[int, str], OSError]
"""Makes the error for an errno and a text."""


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _change_no_pool(_mode: PoolModeName) -> None:
    """There is none."""


@dataclass(frozen=True, slots=True)
class Means:
    """How effects reach what is not the operation's own.

    Attributes:
        sleep: waits for some seconds.
        crash: ends the process at once.
        change_pool: brings the pool into a mode.
    """

    sleep: Callable[[float], None] = time.sleep
    crash: Callable[[], None] = _kill_this_process
    change_pool: Callable[[PoolModeName], None] = _change_no_pool


PLAIN: Final = Means()


def meet(active: ActiveRule, what: str, means: Means, failure: Failure) -> None:
    """Do what an effect does before the operation, or in its place; a delay is the caller's.

    Args:
        what: the operation, for the text of an error.

    Raises:
        OSError: the operation fails.
    """
    effect = active.rule.effect
    if isinstance(effect, Error):
        raise failure(effect.number, f"{os.strerror(effect.number)} (fault '{active.name}' in {what})")
    if isinstance(effect, Crash):
        means.crash()
    elif isinstance(effect, PoolMode):
        means.change_pool(effect.mode)
    elif isinstance(effect, NoSpace):
        if effect.of == "data":
            raise OutOfDataSpace(f"the pool is out of data space (fault '{active.name}' in {what})")
        means.change_pool("out_of_metadata_space")


@dataclass(slots=True)
class Alteration:
    """What becomes of the bytes of an operation.

    Attributes:
        kept: (begin, end) of the bytes that are written, counted from the operation's first.
        flips: (position, bit) of the bits that are wrong, counted likewise.
        failed_by: the rule with which the operation fails when that is done.
        short_bytes: how many bytes it says were written, where it says so.
    """

    kept: list[tuple[int, int]]
    flips: list[tuple[int, int]] = field(default_factory=list)
    failed_by: ActiveRule | None = None
    short_bytes: int | None = None

    def applied(self, data: memoryview, begin: int, end: int) -> bytes:
        """Some of the bytes as they are written or read."""
        piece = bytearray(data[begin:end])
        for position, bit in self.flips:
            if begin <= position < end:
                piece[position - begin] ^= 1 << bit
        return bytes(piece)

    def fail_if_wanted(self, what: str, failure: Failure) -> None:
        """Raise the error of a torn write."""
        active = self.failed_by
        if active is not None and isinstance(active.rule.effect, Tear):
            error = Error(active.rule.effect.errno)
            raise failure(error.number, f"{os.strerror(error.number)} (fault '{active.name}' in {what})")


def alteration(hits: Sequence[ActiveRule], offset: int, length: int) -> Alteration:
    """What rules do to the bytes at `offset`."""
    found = Alteration([(0, length)])
    for active in hits:
        effect = active.rule.effect
        if isinstance(effect, Flip):
            found.flips.append(_bit(active, effect, offset, length))
        elif isinstance(effect, Lose):
            found.kept = []
        elif isinstance(effect, Short):
            found.short_bytes = min(effect.keep_bytes, length)
            found.kept = _intersection(found.kept, [(0, found.short_bytes)])
        elif isinstance(effect, Tear):
            found.kept = _intersection(found.kept, _kept(active, effect, length))
            found.failed_by = active if effect.errno else found.failed_by
    return found


def _bit(active: ActiveRule, effect: Flip, offset: int, length: int) -> tuple[int, int]:
    if effect.offset_bytes is not None:
        return effect.offset_bytes - offset, effect.bit
    return active.random.randrange(max(length, 1)), active.random.randrange(8)


def _kept(active: ActiveRule, effect: Tear, length: int) -> list[tuple[int, int]]:
    if effect.keep_bytes is not None:
        return [(0, min(effect.keep_bytes, length))] if effect.keep_bytes else []
    sectors = range(-(-length // SECTOR_BYTES))
    kept = effect.keep_sectors
    if kept is None:
        kept = tuple(sector for sector in sectors if active.random.random() < 0.5)
    begins = [sector * SECTOR_BYTES for sector in sorted(set(kept)) if sector in sectors]
    return [(begin, min(begin + SECTOR_BYTES, length)) for begin in begins]


def _intersection(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    both = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return sorted((begin, end) for begin, end in both if begin < end)
