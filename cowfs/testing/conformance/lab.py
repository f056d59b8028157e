"""Where behaviours are tried: a lab makes devices, opens pools on them, and judges what is left behind.

A backend is given; everything else is a directory for its files. What a lab can do to pools beyond `Backend`,
to put them into special situations, depends on what the backend offers:

    DependencyInjectable    takes another clock, another timeout of full pools, and devices that fail on request
    FaultInjectable         runs on devices of the machine's, and makes some that fail; its timeout is the machine's

`features_of` says what that comes to; behaviours declare the features they need.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import time
from collections.abc import Callable
from typing import ParamSpec, Protocol, runtime_checkable

from cowfs.blockdev import BlockDevice, FileDevice
from cowfs.errors import MissingRequirement, OutOfDataSpace
from cowfs.faults.disk import FaultyDevice
from cowfs.faults.rules import ActiveRule
from cowfs.pool import Backend, Capability, Pool, PoolStatus, PoolTable, ThinDevice, UnreadableStatus
from cowfs.testing.clock import ManualClock
from cowfs.testing.judges import require_clean
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors

P = ParamSpec("P")

BLOCK_SECTORS = 128
BLOCK = BLOCK_SECTORS * SECTOR_BYTES
NO_SPACE_TIMEOUT_SECONDS = 60.0
_SHORT_TIMEOUT_SECONDS = 2.0
_COMMIT_SECONDS = 1.0
_TRIES = 50
_LIMIT_SECONDS = 30.0


class LabFeature(enum.Flag):
    """What a lab can do to the pools of a backend."""

    CLOCK = enum.auto()  # move time by hand
    TIMEOUT = enum.auto()  # choose how long a full pool lets writes wait
    FAULTS = enum.auto()  # make the writes of a device fail, or everything, until it is healed
    NTH_FAULT = enum.auto()  # make chosen requests of a device fail, and no others


@runtime_checkable
class DependencyInjectable(Protocol):
    """A backend that can be put on another clock and on other devices."""

    def for_tests(
        self,
        *,
        clock: Callable[[], float],
        no_space_timeout_seconds: float,
        wrap_device: Callable[[str, BlockDevice], BlockDevice],
    ) -> Backend:
        """The same backend.

        Args:
            no_space_timeout_seconds: how long a full pool lets writes wait; 0 is for ever.
            wrap_device: called with `metadata` or `data` and the device; what it returns is used instead.
        """
        ...


class FailingDevice(Protocol):
    """A device that shows a file or disk, and can be made to fail. `path` is its node."""

    path: str

    def fail_writes(self) -> None: ...

    def fail_everything(self) -> None: ...

    def heal(self) -> None:
        """Work, and be as large as what is below."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class FaultInjectable(Protocol):
    """A backend on devices of the machine's."""

    def failing_device(self, name: str, path: str) -> FailingDevice: ...

    def set_no_space_timeout(self, seconds: float) -> float:
        """How long pools that fill up from now on let writes wait; what it was. 0 is for ever."""
        ...


def features_of(backend: Backend) -> LabFeature:
    if isinstance(backend, DependencyInjectable):
        return LabFeature.CLOCK | LabFeature.TIMEOUT | LabFeature.FAULTS | LabFeature.NTH_FAULT
    if isinstance(backend, FaultInjectable):
        return LabFeature.TIMEOUT | LabFeature.FAULTS
    return LabFeature(0)


class Lab:
    """Makes pools of one backend for one behaviour. `close` closes and judges them all.

    Sizes are in blocks. Device files are sparse and live in `directory`.
    """

    def __init__(self, backend: Backend, directory: str, judge: Callable[[BlockDevice], None] = require_clean) -> None:
        self._directory = directory
        self._judge = judge
        self._pools: dict[str, Pool] = {}
        self._tables: dict[str, PoolTable] = {}
        self._faulty: dict[tuple[str, str], FaultyDevice] = {}
        self._failing: dict[str, tuple[str, FailingDevice]] = {}  # by path: the file that it shows, and itself
        self._timeout_before: float | None = None
        self._opening = ""
        self._serial = 0
        self._may_leak = False
        self.durable = True  # of pools opened from now on; False where a behaviour is about space, and takes many steps
        self._damaged: set[str] = set()
        self.clock = ManualClock()
        self._plain = backend
        self._is_adjustable = isinstance(backend, DependencyInjectable)
        self.backend = backend
        if self._is_adjustable:
            self.set_no_space_timeout(NO_SPACE_TIMEOUT_SECONDS)

    @property
    def capabilities(self) -> Capability:
        return self._plain.capabilities

    def has(self, capability: Capability) -> bool:
        return bool(self.capabilities & capability)

    def set_no_space_timeout(self, seconds: float) -> None:
        """For pools opened from now on. 0 is for ever."""
        if isinstance(self._plain, DependencyInjectable):
            self.backend = self._plain.for_tests(
                clock=self.clock, no_space_timeout_seconds=seconds, wrap_device=self._wrap
            )
        elif isinstance(self._plain, FaultInjectable):
            before = self._plain.set_no_space_timeout(seconds)
            self._timeout_before = before if self._timeout_before is None else self._timeout_before

    def choose_timeout(self) -> float:
        """Set, and return, the timeout of full pools in seconds: one that may really have to pass is short."""
        seconds = NO_SPACE_TIMEOUT_SECONDS if self._is_adjustable else _SHORT_TIMEOUT_SECONDS
        self.set_no_space_timeout(seconds)
        return seconds

    # ------------------------------------------------------------------ pools

    def file(self, name: str, size_bytes: int) -> str:
        """A new sparse file; its path."""
        self._serial += 1
        path = os.path.join(self._directory, f"{name}-{self._serial}")
        with open(path, "xb") as file:
            file.truncate(size_bytes)
        return path

    def new_table(
        self,
        data_blocks: int = 64,
        metadata_blocks: int = 1024,
        *,
        block_sectors: int = BLOCK_SECTORS,
        low_water_blocks: int = 0,
        **features: bool,
    ) -> PoolTable:
        """A table over two fresh files."""
        length_sectors = data_blocks * block_sectors
        return PoolTable(
            Sectors(length_sectors),
            self.file("metadata", metadata_blocks * METADATA_BLOCK_BYTES),
            self.file("data", length_sectors * SECTOR_BYTES),
            Sectors(block_sectors),
            low_water_blocks,
            **features,
        )

    def open(self, table: PoolTable, name: str | None = None) -> Pool:
        name = name or f"cowfs-lab-{os.getpid()}-{len(self._tables)}"
        self._opening = name
        pool = self.backend.open_pool(name, table, durable=self.durable)
        self._pools[name] = pool
        self._tables[name] = table
        return pool

    def failing_pool(self, data_blocks: int = 64, metadata_blocks: int = 1024, **options: int | bool) -> Pool:
        """A fresh pool whose devices can be made to fail, or given faults."""
        return self.open(self.failing_table(data_blocks, metadata_blocks, **options))

    def failing_table(self, data_blocks: int = 64, metadata_blocks: int = 1024, **options: int | bool) -> PoolTable:
        table = self.new_table(data_blocks, metadata_blocks, **options)  # type: ignore[arg-type]
        if isinstance(self._plain, FaultInjectable):
            devices = [self._make_failing(path) for path in (table.metadata_device, table.data_device)]
            table = table.replace(metadata_device=devices[0], data_device=devices[1])
        return table

    def _make_failing(self, file: str) -> str:
        assert isinstance(self._plain, FaultInjectable)
        device = self._plain.failing_device(f"cowfs-lab-{os.getpid()}-disk-{len(self._failing)}", file)
        self._failing[device.path] = file, device
        return device.path

    def _file_of(self, path: str) -> str:
        """The file that a device of a table is, or shows."""
        return self._failing[path][0] if path in self._failing else path

    def _enlarge(self, path: str, size_bytes: int) -> None:
        os.truncate(self._file_of(path), size_bytes)
        if path in self._failing:
            self._failing[path][1].heal()

    def pool(self, data_blocks: int = 64, metadata_blocks: int = 1024, **options: int | bool) -> Pool:
        """A fresh pool; options as of `new_table`."""
        return self.open(self.new_table(data_blocks, metadata_blocks, **options))  # type: ignore[arg-type]

    def table(self, pool: Pool) -> PoolTable:
        """The table that a pool was opened or reloaded with, by path."""
        return self._tables[pool.name]

    def reload(self, pool: Pool, **changes: object) -> None:
        """Load and resume a table with changes."""
        table = self.table(pool).replace(**changes)
        pool.reload(table)
        pool.resume()
        self._tables[pool.name] = table

    def reopen(self, pool: Pool, **changes: object) -> Pool:
        """Close a pool and open it again, with changes of its table."""
        table = self.table(pool).replace(**changes)
        pool.close()
        self._pools.pop(pool.name, None)
        return self.open(table, pool.name)

    def grow_data(self, pool: Pool, blocks: int) -> None:
        table = self.table(pool)
        length_sectors = blocks * table.block_sectors
        self._enlarge(table.data_device, length_sectors * SECTOR_BYTES)
        self.reload(pool, length_sectors=Sectors(length_sectors))

    def grow_metadata(self, pool: Pool, blocks: int) -> None:
        self._enlarge(self.table(pool).metadata_device, blocks * METADATA_BLOCK_BYTES)
        pool.suspend()
        pool.resume()

    def thin(self, pool: Pool, thin_id: int = 0, blocks: int = 16, name: str = "", **options: object) -> ThinDevice:
        """An active thin, made when it is not there."""
        if thin_id not in pool.thin_ids():
            pool.create_thin(thin_id)
        sectors = blocks * pool.block_bytes // SECTOR_BYTES
        return pool.activate(name or f"thin-{thin_id}", thin_id, sectors, **options)  # type: ignore[arg-type]

    def pool_with_thin(
        self, filled: int = 0, *, data_blocks: int = 64, metadata_blocks: int = 1024, blocks: int = 16, **features: int
    ) -> tuple[Pool, ThinDevice]:
        """A fresh pool with thin 0 active, of so many `blocks`, of which the first ones are `filled` with ones."""
        pool = self.pool(data_blocks, metadata_blocks, **features)
        return pool, self._filled(pool, filled, blocks)

    def failing_pool_with_thin(self, filled: int = 0) -> tuple[Pool, ThinDevice]:
        """As `pool_with_thin`, on devices that can be made to fail; what was filled is flushed."""
        pool = self.failing_pool()
        thin = self._filled(pool, filled, 16)
        thin.flush()
        return pool, thin

    def _filled(self, pool: Pool, filled: int, blocks: int) -> ThinDevice:
        thin = self.thin(pool, blocks=blocks)
        if filled:
            fill(thin, 0, filled, 1)
        return thin

    def origin(self, content: bytes) -> str:
        """A file to be an external origin."""
        path = self.file("origin", len(content))
        with open(path, "r+b") as file:
            file.write(content)
        return path

    # ------------------------------------------------------------------ special situations

    def pass_time(self, pool: Pool, seconds: float) -> None:
        """Let time go by for a pool: on its clock where that can be moved, else by waiting."""
        if self._is_adjustable:
            self.clock.advance(seconds)
            pool.tick()
        else:
            time.sleep(seconds)

    def now(self) -> float:
        """Seconds on the pools' clock."""
        return self.clock() if self._is_adjustable else time.monotonic()

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for what the machine does in its own time; on a clock that is moved by hand it is so already."""
        deadline = time.monotonic() + (0 if self._is_adjustable else _LIMIT_SECONDS)
        while not holds():
            if time.monotonic() >= deadline:
                raise AssertionError(f"it does not come about: {what}")
            time.sleep(0.01)

    def wait_for_a_commit(self, pool: Pool, before: bytes) -> None:
        """Let a second pass, after which the superblock must be another one than before."""
        if self._is_adjustable:
            self.pass_time(pool, 1.5)
        self.wait_until(lambda: self.superblock(pool) != before, "a commit, although a second passed")

    def before_a_commit_is_due(self, commit: Callable[[], object], steps: Callable[[], None]) -> None:
        """Carry out steps between a commit and the one that time alone makes due a second later.

        Args:
            commit: has the pool commit as it does at a flush.
            steps: carried out again, after another commit, where they took longer than a second.
        """
        for _ in range(_TRIES):
            begin = self.now()
            commit()
            failure = None
            try:
                steps()
            except AssertionError as error:
                failure = error
            if self.now() - begin < _COMMIT_SECONDS:
                if failure is not None:
                    raise failure
                return
        raise AssertionError(f"none of {_TRIES} tries took less than a second")

    def fail_writes(self, pool: Pool, role: str) -> None:
        """Make writes to a device (`metadata` or `data`) of a failing pool fail until it is healed, flushes too."""
        if self._is_adjustable:
            self.inject(pool, role, "write", "flush")
        else:
            self._failing_device_of(pool, role).fail_writes()

    def fail_everything(self, pool: Pool, role: str) -> None:
        """Make a device of a failing pool fail altogether until it is healed."""
        if self._is_adjustable:
            self.inject(pool, role)
        else:
            self._failing_device_of(pool, role).fail_everything()

    def inject(
        self, pool: Pool, role: str, *operations: str, errno: str = "EIO", after: int = 0, times: int | None = None
    ) -> ActiveRule:
        """Make chosen requests to a device of a pool fail, all of them by default."""
        return self._faulty[pool.name, role].fail(*operations, errno=errno, after=after, times=times)

    def heal(self, pool: Pool) -> None:
        for role in ("metadata", "data"):
            if self._is_adjustable:
                self._faulty[pool.name, role].heal()
            else:
                self._failing_device_of(pool, role).heal()

    def _failing_device_of(self, pool: Pool, role: str) -> FailingDevice:
        table = self.table(pool)
        return self._failing[table.metadata_device if role == "metadata" else table.data_device][1]

    def _wrap(self, role: str, device: BlockDevice) -> BlockDevice:
        device = FaultyDevice(device)
        self._faulty[self._opening, role] = device
        return device

    def superblock(self, pool: Pool) -> bytes:
        """What is in the pool's metadata file now; every commit changes its roots."""
        with open(self._file_of(self.table(pool).metadata_device), "rb") as file:
            return file.read(METADATA_BLOCK_BYTES)

    def edit_metadata(self, pool: Pool, edit: Callable[[FileDevice], None], *, damages: bool = True) -> PoolTable:
        """Close a pool and change its metadata file; the table to open it with.

        Args:
            damages: the metadata is no longer expected to be clean.
        """
        table = self.table(pool)
        pool.close()
        self._pools.pop(pool.name, None)
        if damages:
            self._damaged.add(table.metadata_device)
        device = FileDevice(self._file_of(table.metadata_device))
        try:
            edit(device)
            device.flush()
        finally:
            device.close()
        return table

    def expect_leaks(self) -> None:
        """What this behaviour does leaves blocks allocated and unmapped, on backends that do not promise otherwise."""
        self._may_leak = not self.has(Capability.NO_LEAKS)

    # ------------------------------------------------------------------ the end

    def judge_now(self, pool: Pool) -> None:
        """Ask the judges about the committed metadata of a pool that stays open."""
        pool.commit()
        device = pool.open_metadata()
        try:
            # What a judge is missing is said at the end.
            with contextlib.suppress(MissingRequirement):
                self._judge(device)
        finally:
            device.close()

    def close(self, *, judge: bool = True) -> None:
        """Close what is open; with `judge`, ask the judges about every pool's metadata.

        Raises:
            AssertionError: the metadata is not clean.
            MissingRequirement: a judge is not installed.
        """
        for pool in list(self._pools.values()):
            with contextlib.suppress(OSError) if not judge else contextlib.nullcontext():
                pool.close()
        self._pools.clear()
        for _, disk in self._failing.values():
            disk.close()
        if self._timeout_before is not None:
            self.set_no_space_timeout(self._timeout_before)
        if not judge or self._may_leak:
            return
        for path in {table.metadata_device for table in self._tables.values()} - self._damaged:
            device = FileDevice(self._file_of(path), read_only=True)
            try:
                self._judge(device)
            finally:
                device.close()


class PendingWrite:
    """A write to a full pool that queues, tried again whenever it is asked for."""

    def __init__(self, thin: ThinDevice, offset: int, data: bytes) -> None:
        self._thin, self._offset, self._data = thin, offset, data
        self._errno: int | None = None
        self.waiting()

    def waiting(self) -> bool:
        if self._errno is None:
            try:
                self._thin.pwrite(self._offset, self._data)
                self._errno = 0
            except OutOfDataSpace as error:
                self._errno = None if error.may_queue else error.errno
            except OSError as error:
                self._errno = error.errno
        return self._errno is None

    def result(self) -> int:
        """0, or the errno it ended with. Raises AssertionError when it still waits."""
        if self.waiting():
            raise AssertionError("the write still waits for space")
        assert self._errno is not None
        return self._errno


# --------------------------------------------------------------------------------- small things behaviours share


def expect_error(number: int, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> OSError:
    """Carry out a call that must fail with this errno; the error."""
    try:
        result = call(*args, **kwargs)
    except OSError as error:
        if error.errno != number:
            raise AssertionError(f"expected {_name(number)}, got {_name(error.errno)}: {error}") from error
        if not str(error) or "\n" in str(error):
            raise AssertionError(f"an error is one clear line, not {str(error)!r}") from error
        return error
    raise AssertionError(f"expected {_name(number)}, and it succeeded with {result!r}")


def expect_any_error(call: Callable[[], object]) -> OSError:
    """Carry out a call that must fail; the error."""
    try:
        result = call()
    except OSError as error:
        return error
    raise AssertionError(f"expected an error, and it succeeded with {result!r}")


def expect_equal(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: found {_short(found)}, expected {_short(wanted)}")


def status_of(pool: Pool, *, flush: bool = True) -> PoolStatus:
    """The status of a pool that works."""
    status = pool.status(flush=flush)
    if isinstance(status, UnreadableStatus):
        raise AssertionError(f"the pool's status is {status.value}")  # noqa: TRY004
    return status


def mode_word(pool: Pool, *, flush: bool = True) -> str:
    """The mode as the status line shows it: `ro` has two causes."""
    return status_of(pool, flush=flush).format().split()[4]


def used(pool: Pool, *, flush: bool = True) -> int:
    """Used data blocks."""
    return status_of(pool, flush=flush).used_data_blocks


def mapped_blocks(thin: ThinDevice) -> int:
    status = thin.status()
    if isinstance(status, UnreadableStatus):
        raise AssertionError(f"the thin's status is {status.value}")  # noqa: TRY004
    return status.mapped_sectors * SECTOR_BYTES // thin.block_bytes


def fill(thin: ThinDevice, begin: int, blocks: int, stamp: int) -> bytes:
    """Write whole blocks of one repeated byte; what was written."""
    data = bytes([stamp]) * (blocks * thin.block_bytes)
    thin.pwrite(begin * thin.block_bytes, data)
    return data


def expect_content(thin: ThinDevice, begin: int, blocks: int, stamp: int) -> None:
    found = thin.pread(begin * thin.block_bytes, blocks * thin.block_bytes)
    if found != bytes([stamp]) * len(found):
        position = next(i for i, byte in enumerate(found) if byte != stamp)
        raise AssertionError(
            f"block {begin + position // thin.block_bytes} of '{thin.name}' holds {found[position]:#04x} at byte "
            f"{position % thin.block_bytes}, expected {stamp:#04x}"
        )


def allocated_bytes(path: str) -> int:
    """What a file takes on its host."""
    return os.stat(path).st_blocks * SECTOR_BYTES


def _name(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
