"""Faults below a pool of the kernel: device-mapper devices between the pool and its two devices.

Without faults there are none of them. The kernel cannot put a device below a pool that is in use, so they come and go
while nothing uses the pool's thin devices; until then they pass everything on.

    error   target `error`: reads, writes and discards; target `flakey`: everything but reads, on the whole device
    lose    target `flakey`: everything but reads, on the whole device
    delay   target `delay`: reads; writes and discards; flushes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from cowfs.errors import InvalidRequest
from cowfs.pool import DiskFault, DiskRole
from cowfs.units import SECTOR_BYTES
from cowfs_dmthin.abi import TargetLine, format_device_number
from cowfs_dmthin.control import Control
from cowfs_dmthin.loop import Backing

ROLES: Final[tuple[DiskRole, ...]] = ("metadata", "data")
_CHANGES: Final = frozenset({"write", "discard", "flush"})
_FOREVER_SECONDS: Final = 1_000_000
_MOST_MILLISECONDS: Final = 3_600_000


class FaultLayer:
    """One of these devices, of the size of what is below it.

    Attributes:
        device_number: of the device.
    """

    def __init__(self, control: Control, name: str, backing: Backing, device_number: int) -> None:
        self._control = control
        self._name = name
        self._backing = backing
        self.device_number = device_number
        self._faults: Sequence[DiskFault] = ()
        self._size_bytes = 0

    @classmethod
    def made(cls, control: Control, pool_name: str, role: DiskRole, backing: Backing) -> FaultLayer:
        """A new one, which passes everything on. It is removed with its last user once it has one: see `lend`."""
        name = _name(pool_name, role)
        with ExitStack() as undo:
            layer = cls(control, name, backing, control.create(name))
            undo.callback(control.remove_if_there, name)
            layer.put(())
            undo.pop_all()
        return layer

    @classmethod
    def left(cls, control: Control, pool_name: str, role: DiskRole, backing: Backing) -> FaultLayer | None:
        """The one that an ended process left below a pool, without its faults; None when there is none."""
        name = _name(pool_name, role)
        info = control.info(name)
        if info is None or (info.has_live_table and control.dependencies(name) not in ([backing.device_number], [])):
            return None
        layer = cls(control, name, backing, info.device_number)
        layer.put(())
        return layer

    @property
    def table_name(self) -> str:
        """As table lines have it."""
        return format_device_number(self.device_number)

    def lend(self) -> None:
        """The pool's table has it now: have it removed with the pool."""
        self._control.remove(self._name, deferred=True)

    def refresh_size(self) -> int:
        """Size in bytes, after what is below has been looked at again."""
        if self._backing.refresh_size() != self._size_bytes:
            self.put(self._faults)
        return self._size_bytes

    def put(self, faults: Sequence[DiskFault]) -> None:
        """Have the kernel do this from now on, and nothing else."""
        self._size_bytes = self._backing.refresh_size()
        self._faults = faults
        self._control.load(self._name, *self._lines())
        self._control.suspend(self._name, flush=False, freeze=False)
        self._control.resume(self._name)

    def _lines(self) -> Iterator[TargetLine]:
        end_sectors = self._size_bytes // SECTOR_BYTES
        position = 0
        for fault in sorted(self._faults, key=lambda fault: fault.begin):
            begin = min(fault.begin // SECTOR_BYTES, end_sectors)
            end = end_sectors if fault.end is None else min(fault.end // SECTOR_BYTES, end_sectors)
            if begin > position:
                yield self._linear(position, begin)
            if end > begin:
                yield TargetLine(begin, end - begin, *self._target(fault, begin))
            position = max(position, end)
        if position < end_sectors:
            yield self._linear(position, end_sectors)

    def _linear(self, begin: int, end: int) -> TargetLine:
        return TargetLine(begin, end - begin, "linear", f"{self._backing.table_name} {begin}")

    def _target(self, fault: DiskFault, begin: int) -> tuple[str, str]:
        below = f"{self._backing.table_name} {begin}"
        if fault.kind == "delay":
            waits = ({"read"}, {"write"}, {"flush"})
            each = [round(fault.seconds * 1000) if kinds & fault.operations else 0 for kinds in waits]
            return "delay", " ".join(f"{below} {milliseconds}" for milliseconds in each)
        if fault.kind == "error" and "read" in fault.operations:
            return "error", ""
        feature = "error_writes" if fault.kind == "error" else "drop_writes"
        return "flakey", f"{below} 0 {_FOREVER_SECONDS} 1 {feature}"

    def remove(self) -> None:
        self._control.remove_if_there(self._name)


def check_faults(control: Control, faults: Sequence[DiskFault]) -> None:
    """Raises InvalidRequest, with the reason: the kernel has no target that does this."""
    for fault in faults:
        if problem := _problem(fault):
            raise InvalidRequest(problem)
        target = _target_name(fault)
        if control.target_version(target) is None:
            raise InvalidRequest(f"this kernel has no target '{target}'; try 'modprobe dm-{target}'")
    for role in ROLES:
        end = 0
        for fault in sorted((fault for fault in faults if fault.role == role), key=lambda fault: fault.begin):
            if fault.begin < end:
                raise InvalidRequest(
                    f"another one is about the same bytes of '{role}', and the kernel does one thing to each; "
                    "clear the other one first"
                )
            end = (1 << 64) if fault.end is None else fault.end


def _target_name(fault: DiskFault) -> str:
    if fault.kind == "delay":
        return "delay"
    return "error" if "read" in fault.operations else "flakey"


def _problem(fault: DiskFault) -> str:
    """Why no target does this; empty where one does."""
    operations = fault.operations
    for edge in (fault.begin, fault.end or 0):
        if edge % SECTOR_BYTES:
            return f"byte {edge} is not the begin of a sector of {SECTOR_BYTES} bytes"
    if fault.kind == "delay":
        if not 1 <= fault.seconds * 1000 <= _MOST_MILLISECONDS:
            return f"the kernel delays by 1 ms to {_MOST_MILLISECONDS // 1000} s, and not by {fault.seconds:g} s"
        if ("write" in operations) != ("discard" in operations):
            return "the kernel delays writes and discards alike; name both"
        return ""
    if fault.kind == "error" and "read" in operations:
        if operations != {"read", "write", "discard"}:
            return "the kernel fails reads, writes and discards alike; name these three, and no flushes"
        return ""
    if operations != _CHANGES:
        verb = "fails" if fault.kind == "error" else "loses"
        return f"without reads the kernel {verb} writes, discards and flushes alike; name these three"
    if fault.begin or fault.end is not None:
        return "without reads the kernel does this to the whole device; leave the range out"
    return ""


def _name(pool_name: str, role: DiskRole) -> str:
    return f"{pool_name}-faults-{role}"
