"""What was written and when it became durable, whatever it was written to; and a state that a crash may leave.

A *position* counts events of a recording, from 0; at position p the events before p have happened. An *item* is what a
crash may lose: a write to the disk, or one effect of an operation on files. It is issued at one position and durable
from another one on; in between it may be lost, wholly or in sectors. A *mark* holds from its position on.
"""

from __future__ import annotations

import bisect
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

NEVER: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class Item:
    """What a crash may lose.

    Attributes:
        issued: the position after the event that it is of.
        durable: the first position from which it cannot be lost.
        sectors: the numbers of what it may be torn into; an empty range: all or nothing.
    """

    issued: int
    durable: int
    sectors: range = range(0)


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """An item that was lost: all of it, or some of its sectors."""

    item: int
    sectors: tuple[int, ...] = ()

    def loses(self, sector: int) -> bool:
        return not self.sectors or sector in self.sectors


@dataclass(frozen=True, slots=True, order=True)
class State:
    """What a crash at a position leaves, when of what was not durable yet `lost` is lost."""

    position: int
    lost: tuple[Loss, ...] = ()


class History(ABC):
    """A recording as items, with what a model says of them.

    Attributes:
        items: in the order in which they were issued.
        length: the last position.
        flushes: positions just after something became durable.
        marks: (position, text), in order.
    """

    items: list[Item]
    length: int
    flushes: list[int]
    marks: list[tuple[int, str]]

    @abstractmethod
    def key(self, state: State) -> int:
        """The same for states of the same content; of 128 bits, so that others do not have it."""

    @abstractmethod
    def describe(self, item: int) -> str:
        """What an item is, in words."""

    @abstractmethod
    def subject(self, item: int) -> tuple[str, int]:
        """What kind of item it is, and the number of the file it is about: of `data` and `size` their file, of a `name`
        the file that it leads to, 0 where it is about none.
        """

    @abstractmethod
    def event_of(self, item: int) -> int:
        """The number of the write or operation that an item is of: items of the same one are parts of it."""

    def unwritten(self, position: int) -> str:
        """The last thing that the program had done by then and that was not written yet, in words; empty for none."""
        del position
        return ""

    def marks_at(self, position: int) -> list[str]:
        return [text for at, text in self.marks if at <= position]

    def marks_before(self, position: int) -> int:
        return bisect.bisect_right(self._mark_positions, position)

    @cached_property
    def _mark_positions(self) -> list[int]:
        return [position for position, _ in self.marks]

    @cached_property
    def _issued(self) -> list[int]:
        return [item.issued for item in self.items]

    def issued_until(self, position: int) -> int:
        """How many items were issued by then."""
        return bisect.bisect_right(self._issued, position)

    def open_at(self, position: int) -> list[int]:
        """The items that a crash at a position may lose."""
        items = self.items
        return [i for i in range(self.issued_until(position)) if items[i].durable > position]

    @cached_property
    def moments(self) -> list[int]:
        """The positions where most may be lost: just before something becomes durable or is promised, and the end."""
        before = {position - 1 for position in (*self.flushes, *self._mark_positions)}
        return sorted({*before, *self._mark_positions, self.length} - {-1})

    def later_moment(self, position: int) -> int:
        """The last position with the same promises at which everything issued since may be lost."""
        following = [at for at in (*self.flushes, *self._mark_positions) if at > position]
        return min(following, default=self.length + 1) - 1

    def torn(self, item: int, sectors: Sequence[int]) -> Loss | None:
        """What is lost of an item that is torn: these sectors, and those that go with them; None for nothing."""
        lost = tuple(sectors)
        return Loss(item, lost if len(lost) < len(self.items[item].sectors) else ()) if lost else None

    def losses(self, items: Sequence[int]) -> tuple[Loss, ...]:
        return tuple(Loss(item) for item in items)
