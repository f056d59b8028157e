"""Which states are tried, each content once.

Without a number, all of these; with one, a seeded part of each kind, the rest of one kind's share going to the next:

1. the flush boundaries: all requests so far, just after some of them became durable
2. the prefixes: all requests so far, at each position
3. at each moment when most may be lost: all lost, one lost, one kept
4. subsets of what may be lost at a moment, torn at sectors; without a number, all of them where few may be lost
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Final

from cowfs.crashes.history import History, Loss, State

_ALL_SUBSETS_ITEMS: Final = 8  # all subsets of so many are tried
_SUBSETS_PER_MOMENT: Final = 64  # of more, so many
_KINDS: Final = 4
_TORN_SHARE: Final = 0.3
_VAIN_TRIES: Final = 500  # in a row, after which there is hardly a subset that was not seen


def plan(history: History, *, states: int | None, seed: int) -> list[State]:
    """The states to try, by position, no two of the same content. Of equal ones it is the one with most promises.

    Args:
        states: at most so many; None for all.
    """
    planned = _Planned(history, states)
    rng = random.Random(seed)  # noqa: S311
    kinds: list[Iterable[State]] = [
        (State(position) for position in (0, *history.flushes, history.length)),
        map(State, range(history.length + 1)),
        _singles(history),
    ]
    for left, kind in zip(range(_KINDS, 0, -1), kinds, strict=False):
        planned.take(kind, rng, kinds_left=left)
    if states is None:
        planned.take(_subsets_of_each(history, rng), rng, kinds_left=1)
    else:
        planned.fill(_random_subsets(history, rng))
    return sorted(planned.by_key.values())


class _Planned:
    def __init__(self, history: History, states: int | None) -> None:
        self._history = history
        self._states = states
        self.by_key: dict[int, State] = {}

    def _add(self, state: State) -> bool:
        """Whether its content is new."""
        key = self._history.key(state)
        known = self.by_key.get(key)
        marks = self._history.marks_before
        if known is None or marks(known.position) < marks(state.position):
            self.by_key[key] = state
        return known is None

    def take(self, kind: Iterable[State], rng: random.Random, *, kinds_left: int) -> None:
        if self._states is None:
            for state in kind:
                self._add(state)
            return
        share = (self._states - len(self.by_key)) // kinds_left
        candidates = list(kind)
        if len(candidates) > share:
            rng.shuffle(candidates)
        for state in candidates:
            if share <= 0:
                break
            share -= self._add(state)

    def fill(self, stream: Iterator[State]) -> None:
        assert self._states is not None
        vain = 0
        while len(self.by_key) < self._states and vain < _VAIN_TRIES:
            state = next(stream, None)
            if state is None:
                return
            vain = 0 if self._add(state) else vain + 1


def _singles(history: History) -> Iterator[State]:
    for moment in history.moments:
        losable = history.open_at(moment)
        if not losable:
            continue
        yield State(moment, history.losses(losable))
        for item in losable:
            yield State(moment, (Loss(item),))
        if len(losable) > 2:
            for kept in losable:
                yield State(moment, history.losses([item for item in losable if item != kept]))


def _subsets_of_each(history: History, rng: random.Random) -> Iterator[State]:
    for moment in history.moments:
        losable = history.open_at(moment)
        if len(losable) <= _ALL_SUBSETS_ITEMS:
            for count in range(len(losable) + 1):
                for lost in itertools.combinations(losable, count):
                    yield State(moment, history.losses(lost))
        for _ in range(_SUBSETS_PER_MOMENT if losable else 0):
            yield State(moment, _random_losses(history, losable, rng))


def _random_subsets(history: History, rng: random.Random) -> Iterator[State]:
    """Without an end, unless nothing can be lost."""
    moments = [moment for moment in history.moments if history.open_at(moment)]
    while moments:
        position = rng.choice(moments) if rng.random() < 0.5 else rng.randrange(1, history.length + 1)
        yield State(position, _random_losses(history, history.open_at(position), rng))


def _random_losses(history: History, losable: list[int], rng: random.Random) -> tuple[Loss, ...]:
    chance = rng.choice((0.1, 0.5, 0.5, 0.9))
    losses = []
    for item in losable:
        if rng.random() >= chance:
            continue
        sectors = history.items[item].sectors
        if len(sectors) > 1 and rng.random() < _TORN_SHARE:
            torn = history.torn(item, [sector for sector in sectors if rng.random() < 0.5])
            losses += [torn] if torn else []
        else:
            losses.append(Loss(item))
    return tuple(losses)
