"""A test's words for rules of faults.

with faults.fail("write", path="*.wal", errno="EIO", after=3, times=1) as fault:
    ...
assert fault.hits == 1
faults.delay("fsync", seconds=0.2)                    until it is cleared
faults.tear("write", keep_bytes=512)
faults.flip(device_offset=4096, bit=3)
faults.clear()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypedDict, Unpack

from cowfs.faults.plan import (
    Crash,
    Delay,
    Effect,
    Error,
    Flip,
    Lose,
    NoSpace,
    Place,
    PoolMode,
    PoolModeName,
    Rule,
    Short,
    Tear,
    read_plan,
)
from cowfs.faults.rules import FaultReport


class Control(Protocol):
    """Where rules are in force."""

    def add_faults(self, rules: Sequence[Rule]) -> list[FaultReport]: ...

    def list_faults(self) -> list[FaultReport]: ...

    def clear_faults(self, names: Sequence[str]) -> list[FaultReport]: ...


class When(TypedDict, total=False):
    """Where and when a rule is met: the fields of `cowfs.faults.plan.Rule`."""

    name: str
    on: Place
    device: str
    path: str
    range_bytes: tuple[int, int] | None
    range_blocks: tuple[int, int] | None
    after: int
    times: int | None
    nth: int | None
    probability: float
    seed: int


class Fault:
    """A rule in force; the end of a `with` block clears it. Afterwards its counters are what they were last."""

    def __init__(self, control: Control, report: FaultReport) -> None:
        self._control = control
        self._last = report
        self._is_cleared = False

    @property
    def name(self) -> str:
        return self._last.rule.name

    @property
    def seen(self) -> int:
        """How many operations counted for the rule."""
        return self._report().seen

    @property
    def hits(self) -> int:
        """How many of them met its effect."""
        return self._report().hits

    def _report(self) -> FaultReport:
        if not self._is_cleared:
            found = [report for report in self._control.list_faults() if report.rule.name == self.name]
            self._is_cleared = not found  # by others
            self._last = found[0] if found else self._last
        return self._last

    def clear(self) -> None:
        """Take the rule out of force. A second call does nothing."""
        if self._report() and not self._is_cleared:
            (self._last,) = self._control.clear_faults([self.name])
            self._is_cleared = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()


class Faults:
    """Faults of a mounted home. Each method puts one rule in force, until its `clear` or that of all.

    Operations are those of `cowfs.faults.plan.OPERATIONS`; a rule is about the requests of the mount (`on="files"`)
    unless it says otherwise.

    Args:
        device: pattern of the devices that rules are about where they name none.
    """

    def __init__(self, control: Control, device: str = "*") -> None:
        self._control = control
        self._device = device

    def fail(self, *operations: str, errno: str = "EIO", **when: Unpack[When]) -> Fault:
        """Operations fail with an errno, by its name."""
        return self._add(Error(errno), operations, when)

    def delay(self, *operations: str, seconds: float, **when: Unpack[When]) -> Fault:
        """Operations wait before they are done."""
        return self._add(Delay(seconds), operations, when)

    def short(self, *operations: str, keep_bytes: int, **when: Unpack[When]) -> Fault:
        """Of writes only the first bytes are written, and write(2) says so."""
        return self._add(Short(keep_bytes), operations or ("write",), when)

    def tear(
        self,
        *operations: str,
        keep_bytes: int | None = None,
        keep_sectors: Sequence[int] | None = None,
        errno: str = "",
        **when: Unpack[When],
    ) -> Fault:
        """Of writes only a part arrives: the first bytes, some sectors, or sectors that the seed chooses."""
        sectors = None if keep_sectors is None else tuple(keep_sectors)
        return self._add(Tear(keep_bytes, sectors, errno), operations or ("write",), when)

    def flip(
        self,
        *operations: str,
        device_offset: int | None = None,
        offset_bytes: int | None = None,
        bit: int = 0,
        **when: Unpack[When],
    ) -> Fault:
        """One bit is wrong in what is read, or in what is written.

        Args:
            device_offset: the byte, counted on the disk of the device; with `offset_bytes` in the file.
        """
        if device_offset is not None:
            offset_bytes = device_offset
            when.setdefault("on", "device")
        return self._add(Flip(offset_bytes, bit), operations or ("read",), when)

    def lose(self, *operations: str, **when: Unpack[When]) -> Fault:
        """Operations succeed, and nothing of them is done."""
        return self._add(Lose(), operations, when)

    def no_space(self, *operations: str, of: Literal["data", "metadata"] = "data", **when: Unpack[When]) -> Fault:
        """Operations meet a pool without space."""
        return self._add(NoSpace(of), operations or ("write",), when)

    def pool_mode(self, mode: PoolModeName, *operations: str, **when: Unpack[When]) -> Fault:
        """The pool goes into another mode at an operation."""
        return self._add(PoolMode(mode), operations or ("write",), when)

    def crash(self, *operations: str, **when: Unpack[When]) -> Fault:
        """The process that serves the mount ends at an operation, as by kill -9."""
        return self._add(Crash(), operations, when)

    def add(self, *rules: Rule) -> list[Fault]:
        """Put rules in force, all of them or none. Raises UsageError: one is wrong, or cannot be met here."""
        return [Fault(self._control, report) for report in self._control.add_faults(rules)]

    def add_plan(self, path: Path | str) -> list[Fault]:
        """Put the rules of a plan, a file of TOML, in force."""
        return self.add(*read_plan(path).rules)

    def reports(self) -> list[FaultReport]:
        """The rules in force, with their counters."""
        return self._control.list_faults()

    def clear(self, *names: str) -> list[FaultReport]:
        """Take rules out of force, all of them when none is named; what they had counted."""
        return self._control.clear_faults(names)

    def _add(self, effect: Effect, operations: Sequence[str], when: When) -> Fault:
        if when.get("on", "files") in ("files", "device"):
            when.setdefault("device", self._device)
        return self.add(Rule(effect=effect, operations=tuple(operations), **when))[0]
