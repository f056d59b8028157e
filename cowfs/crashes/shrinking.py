"""A failing state with the fewest lost writes, and the earliest of those that lost none.

The states that it wants opened are yielded, and whether each failed is sent back: so a loop of the user's own may open
them as well as the explorer.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from cowfs.crashes.history import History, Loss, State

_TRIES_MAX: Final = 60


def with_what_came_after(history: History, state: State) -> State:
    """The same content described as a state of the last moment with the same promises: all later writes are lost."""
    moment = history.later_moment(state.position)
    later = range(history.issued_until(state.position), history.issued_until(moment))
    return State(moment, tuple(sorted((*state.lost, *history.losses(later)))))


def smallest(history: History, state: State) -> Generator[State, bool, State]:
    """Yields states to try, and takes whether each failed. Returns the one with the fewest losses that failed.

    A state that ends early is one that lost what came after: so it is described by what was lost, too.
    """
    best = with_what_came_after(history, state)
    moment = best.position
    left = _TRIES_MAX
    size = max(1, len(best.lost) // 2)
    while left and best.lost:
        is_smaller = False
        for begin in range(0, len(best.lost), size):
            fewer = State(moment, best.lost[:begin] + best.lost[begin + size :])
            if not left:
                break
            left -= 1
            if (yield fewer):
                best, is_smaller = fewer, True
                break
        if is_smaller:
            size = min(size, max(1, len(best.lost)))
        elif size == 1:
            break
        else:
            size = max(1, size // 2)
    if not best.lost:
        return (yield from _earliest(history, best, left))
    return (yield from _whole(history, best, left))


def _earliest(history: History, best: State, left: int) -> Generator[State, bool, State]:
    """Of states that lost nothing, the first that fails: what was written last before it is what came too early."""
    issued = history.issued_until(best.position)
    promised = history.marks_before(best.position)
    while 0 < issued < len(history.items) and left:
        before = history.items[issued - 1].issued - 1
        if history.marks_before(before) != promised:
            break
        left -= 1
        if not (yield (earlier := State(before))):
            break
        best, issued = earlier, history.issued_until(before)
    return best


def _whole(history: History, best: State, left: int) -> Generator[State, bool, State]:
    """The loss of a whole write is easier to describe than the loss of some of its sectors."""
    if history.items and any(loss.sectors for loss in best.lost) and left:
        whole = State(best.position, tuple(Loss(loss.item) for loss in best.lost))
        if (yield whole):
            return whole
    return best
