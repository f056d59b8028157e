"""The rules in force: which of them an operation meets, and how often each was met.

    faults = FaultSet(randomness=random.Random)
    faults.add(rules)
    faults.met(Operation("files", "write", "web", 0, 512), lambda: ["/a.wal"])     the rules that it meets

The order of operations decides alone: the same plan over the same operations gives the same faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from cowfs.errors import UsageError
from cowfs.faults.plan import Flip, Place, Rule, checked, matches, matches_name
from cowfs.units import METADATA_BLOCK_BYTES

Randomness = Callable[[str], random.Random]
_SUPERBLOCK: Final = (0, METADATA_BLOCK_BYTES)


class FaultReport(msgspec.Struct, frozen=True):
    """A rule in force, with its name. `seen` operations counted for it, of which `hits` met its effect."""

    rule: Rule
    seen: int
    hits: int


class Operation(NamedTuple):
    """What is about to be done; a range of no bytes where there is none.

    `offset`, `length`: bytes of the file or the disk. `block_bytes`: of the disk, for ranges in blocks.
    """

    on: Place
    name: str
    device: str = ""
    offset: int = 0
    length: int = 0
    block_bytes: int = METADATA_BLOCK_BYTES


class ActiveRule:
    """A rule with its counters and its random numbers."""

    def __init__(self, rule: Rule, random: random.Random) -> None:
        self.rule = rule
        self.random = random
        self.seen = 0
        self.hits = 0
        self._operations = frozenset(rule.operations or ("write",))
        self._after, self._times = (rule.after, rule.times) if rule.nth is None else (rule.nth - 1, 1)

    @property
    def name(self) -> str:
        return self.rule.name

    def counts(self, operation: Operation, paths: Callable[[], Collection[str]]) -> bool:
        """Whether an operation is of the rule's place, kind and range."""
        rule = self.rule
        if operation.name not in self._operations:
            return False
        if operation.on != rule.on and (rule.on != "commit" or operation.on != "metadata"):
            return False
        if operation.device and not matches_name(rule.device, operation.device):
            return False
        touched = self._range(operation.block_bytes)
        if touched is not None and not _touches(operation, *touched):
            return False
        return not rule.path or any(matches(rule.path, path) for path in paths())

    def _range(self, block_bytes: int) -> tuple[int, int] | None:
        rule = self.rule
        if rule.on == "commit":
            return _SUPERBLOCK
        if rule.range_blocks is not None:
            begin, end = rule.range_blocks
            return begin * block_bytes, end * block_bytes
        if rule.range_bytes is None and isinstance(rule.effect, Flip) and rule.effect.offset_bytes is not None:
            return rule.effect.offset_bytes, rule.effect.offset_bytes + 1
        return rule.range_bytes

    def hit(self) -> bool:
        """Count an operation; whether it meets the effect."""
        self.seen += 1
        if self.seen <= self._after or (self._times is not None and self.hits >= self._times):
            return False
        if self.rule.probability < 1 and self.random.random() >= self.rule.probability:
            return False
        self.hits += 1
        return True

    def report(self) -> FaultReport:
        return FaultReport(self.rule, self.seen, self.hits)


class FaultSet:
    """Rules in force, in the order in which they were added.

    Args:
        randomness: makes the random numbers of a rule from its seed and its name.
    """

    def __init__(self, rules: Iterable[Rule] = (), *, randomness: Randomness = random.Random) -> None:
        self._randomness = randomness
        self._made = 0
        self.rules: list[ActiveRule] = []
        self.add(rules)

    def add(self, rules: Iterable[Rule]) -> list[ActiveRule]:
        """Put rules in force, all of them or none. Raises UsageError: one is wrong, or has a name that is taken."""
        rules = checked(rules)
        taken = {active.name for active in self.rules}
        if twice := [rule.name for rule in rules if rule.name in taken]:
            raise UsageError(f"there is already a rule '{twice[0]}'; give another name, or clear that one first")
        taken.update(rule.name for rule in rules)
        named = [rule if rule.name else msgspec.structs.replace(rule, name=self._new_name(taken)) for rule in rules]
        added = [ActiveRule(rule, self._randomness(f"{rule.seed} {rule.name}")) for rule in named]
        self.rules += added
        return added

    def _new_name(self, taken: set[str]) -> str:
        while True:
            self._made += 1
            name = f"rule-{self._made}"
            if name not in taken:
                taken.add(name)
                return name

    def clear(self, names: Sequence[str] = ()) -> list[ActiveRule]:
        """Take rules out of force, all of them when none is named. Raises UsageError: there is no such rule."""
        there = {active.name: active for active in self.rules}
        if missing := [name for name in names if name not in there]:
            known = ", ".join(f"'{name}'" for name in there) or "none"
            raise UsageError(f"there is no rule '{missing[0]}'; in force: {known}")
        cleared = [there[name] for name in dict.fromkeys(names)] if names else self.rules
        self.rules = [active for active in self.rules if active not in cleared]
        return cleared

    def met(self, operation: Operation, paths: Callable[[], Collection[str]] = tuple) -> list[ActiveRule]:
        """Count an operation; the rules whose effects it meets, in order.

        Args:
            paths: of the file that it is about; asked for only where a rule needs them.
        """
        return [active for active in self.rules if active.counts(operation, paths) and active.hit()]

    def has(self, *places: Place, device: str = "") -> bool:
        """Whether a rule is about one of some places, and of a device where one is named."""
        return any(
            active.rule.on in places and (not device or matches_name(active.rule.device, device))
            for active in self.rules
        )

    def reports(self) -> list[FaultReport]:
        return [active.report() for active in self.rules]


def _touches(operation: Operation, begin: int, end: int) -> bool:
    return operation.offset < end and begin < operation.offset + operation.length
