"""A block device that fails by rules: around another one, or in the place of its methods (`cowfs.in_place`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cowfs.blockdev import BlockDevice, Buffer, WrappedDevice
from cowfs.errors import PoolIoError
from cowfs.faults.effects import PLAIN, Alteration, Failure, Means, alteration, meet
from cowfs.faults.plan import DISK_OPERATIONS, Delay, Error, Place, Rule
from cowfs.faults.rules import ActiveRule, FaultSet, Operation
from cowfs.units import METADATA_BLOCK_BYTES


class FaultyDevice(WrappedDevice):
    """Another device, which fails as the rules say. A failing operation does nothing else.

    device.fail("write", after=2, times=1)                    the third write fails
    device.fail("read", range_bytes=(4096, 8192))             one block cannot be read
    device.fail()                                             nothing works any more
    device.heal()                                             everything does

    Zeroing is a write, and a copy is a read and a write.

    Args:
        faults: rules that others share; its own by default.
        on, device: what the rules call this one.
        failure: makes the error of an operation that fails.
    """

    def __init__(
        self,
        inner: BlockDevice,
        faults: FaultSet | None = None,
        *,
        on: Place = "device",
        device: str = "",
        means: Means = PLAIN,
        failure: Failure = OSError,
    ) -> None:
        super().__init__(inner)
        self.faults = FaultSet() if faults is None else faults
        self._on = on
        self._device = device
        self._means = means
        self._failure = failure
        self._is_inside = False  # zeroing and copying, which may be done by other methods of the device
        self._block_bytes = int(getattr(inner, "block_bytes", METADATA_BLOCK_BYTES))

    def fail(
        self,
        *operations: str,
        errno: str = "EIO",
        range_bytes: tuple[int, int] | None = None,
        after: int = 0,
        times: int | None = None,
    ) -> ActiveRule:
        """Have operations fail, all of them by default; flushes have no range, and always match."""
        ranged = [name for name in operations or DISK_OPERATIONS if name != "flush" or range_bytes is None]
        rule = Rule(
            effect=Error(errno),
            operations=tuple(ranged),
            on=self._on,
            range_bytes=range_bytes,
            after=after,
            times=times,
        )
        return self.faults.add([rule])[0]

    def heal(self) -> None:
        self.faults.clear()

    # ------------------------------------------------------------------ operations

    def pread(self, offset: int, length: int) -> bytes:
        hits = self._met("read", offset, length)
        data = self.inner.pread(offset, length)
        if not hits:
            return data
        return alteration(hits, offset, length).applied(memoryview(data), 0, length)

    def pwrite(self, offset: int, data: Buffer) -> None:
        length = len(data)
        hits = self._met("write", offset, length)
        if not hits:
            self.inner.pwrite(offset, data)
            return
        found, view = alteration(hits, offset, length), memoryview(data).cast("B")
        for begin, end in found.kept:
            self.inner.pwrite(offset + begin, found.applied(view, begin, end))
        found.fail_if_wanted(_describe("write", offset), self._failure)

    def zero(self, offset: int, length: int) -> None:
        hits = self._met("write", offset, length)
        self._write_otherwise(hits, offset, length, self.inner.zero)

    def discard(self, offset: int, length: int) -> None:
        hits = self._met("discard", offset, length)
        if alteration(hits, offset, length).kept or not length:
            self.inner.discard(offset, length)

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        read = alteration(self._met("read", source_offset, length), source_offset, length)
        hits = self._met("write", target_offset, length)

        def copy(target: int, count: int) -> None:
            self.inner.copy(source_offset + target - target_offset, target, count)

        self._write_otherwise(hits, target_offset, length, copy, read.flips)

    def flush(self) -> None:
        hits = self._met("flush")
        if alteration(hits, 0, 1).kept:
            self.inner.flush()

    def _write_otherwise(
        self,
        hits: list[ActiveRule],
        offset: int,
        length: int,
        write: Callable[[int, int], None],
        flips: list[tuple[int, int]] | None = None,
    ) -> None:
        """A write whose bytes are not here: of the parts that are kept, wrong bits are turned over afterwards."""
        found: Alteration = alteration(hits, offset, length)
        for begin, end in found.kept:
            self._inside(partial(write, offset + begin, end - begin))
            for position, bit in [*found.flips, *(flips or ())]:
                if begin <= position < end:
                    (byte,) = self.inner.pread(offset + position, 1)
                    self.inner.pwrite(offset + position, bytes([byte ^ 1 << bit]))
        found.fail_if_wanted(_describe("write", offset), self._failure)

    def _met(self, name: str, offset: int = 0, length: int = 0) -> list[ActiveRule]:
        if self._is_inside or not self.faults.rules:
            return []
        hits = self.faults.met(Operation(self._on, name, self._device, offset, length, self._block_bytes))
        for active in hits:
            if isinstance(active.rule.effect, Delay):
                self._means.sleep(active.rule.effect.seconds)
            else:
                meet(active, _describe(name, offset), self._means, self._failure)
        return hits

    def _inside(self, write: Callable[[], None]) -> None:
        was_inside, self._is_inside = self._is_inside, True
        try:
            write()
        finally:
            self._is_inside = was_inside


def as_pool_error(number: int, text: str) -> OSError:
    """How a thin device fails."""
    return PoolIoError(text, errno=number)


def _describe(name: str, offset: int) -> str:
    return name if name == "flush" else f"{name} at {offset:#x}"
