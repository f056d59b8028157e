"""THE interface: what a backend, a pool and a thin device are. Read this first.

Vocabulary. A *pool* is a metadata device and a data device under one name. A *thin device* is a virtual disk whose
blocks are mapped to data blocks of the pool on first write (*provisioned*); its id is chosen by the caller, its size
is not stored in the pool. A *snapshot* shares its origin's blocks until either side writes (*breaks sharing*);
afterwards the two are peers, and either may be deleted first.

Lifecycle.

    backend.open_pool(name, table)      formats the metadata when its first 4 KiB are zero, else opens the pool
      pool.create_thin(1)               id 1 exists, maps nothing
      thin = pool.activate("a", 1, n)   a disk of n sectors; the same id may be active under several names
      thin.pwrite / pread / discard / flush
      thin.suspend()                    an active origin is quiesced around create_snap
      pool.create_snap(2, 1)            O(1), whatever is mapped
      thin.resume()
      thin.close()                      deactivates; the thin stays in the pool
      pool.delete(2)                    its blocks lose a reference each
    pool.close()                        deactivates everything that is left, commits

Durability. A thin device is a disk with a volatile write cache: `flush` commits the pool's metadata when this
device changed since the last commit. Every successful message commits. A crash leaves the state of a commit not
older than the last flush.

Errors are those of `cowfs.errors`, with the kernel's errno; the same request fails the same way on every backend.
What a backend cannot do, or does better, it declares in `capabilities`; callers and tests ask for capabilities, never
for names.

Nothing here awaits. A backend whose operations may wait (a full pool that queues) raises `OutOfDataSpace` with
`may_queue` set; the asynchronous edge decides to wait, calling `tick` now and then, and tries again.

Units: ids are plain integers in [0, 2**24); lengths are sectors where the kernel speaks sectors, bytes on the data
path.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

from cowfs.blockdev import BlockDevice
from cowfs.pool.status import PoolMode, PoolStatus, ThinStatus, UnreadableStatus
from cowfs.pool.table import PoolTable, ThinTable
from cowfs.units import Extent

T = TypeVar("T")


class Capability(enum.Flag):
    """What differs between backends on purpose; each value says what a caller may rely on."""

    UNPRIVILEGED = enum.auto()  # works for any user, without a kernel module
    ZEROED_REUSE = enum.auto()  # a reused block reads as zeros even when zeroing is skipped
    NO_LEAKS = enum.auto()  # a crash never leaves an allocated block that nothing maps
    FREED_SPACE_RETURNED = enum.auto()  # freed data blocks are given back to the host's file system
    PROMPT_REUSE = enum.auto()  # a write to a full pool gets what was freed since the last commit
    GENTLE_METADATA_END = enum.auto()  # running out of metadata space loses nothing acknowledged, sets no needs_check
    EXACT_AFTER_ABORT = enum.auto()  # after a failed commit, an active thin does not count blocks that it lost
    BOUNDED_TIME = enum.auto()  # refuses a snapshot whose time would spill into the block number of its mappings
    KERNEL_NODES = enum.auto()  # an active thin is a block device node of the kernel


class ProbeResult(msgspec.Struct, frozen=True):
    """Whether a backend can work here, found by trying; `problem` and `remedy` are empty when it can."""

    usable: bool
    problem: str = ""
    remedy: str = ""


@runtime_checkable
class ThinDevice(BlockDevice, Protocol):
    """An active thin device: a disk of `size_bytes` over one thin id, until `close` deactivates it.

    `discard` unmaps the whole blocks inside the range and leaves partial ones; without an external origin they then
    read as zeros. With `ignore_discard` on the pool it raises EOPNOTSUPP.
    """

    @property
    def name(self) -> str: ...

    @property
    def thin_id(self) -> int: ...

    @property
    def block_bytes(self) -> int:
        """Size of the pool's data block."""
        ...

    def status(self, *, flush: bool = True) -> ThinStatus | UnreadableStatus:
        """Mapped figures; with `flush` the pool commits first, as the kernel does."""
        ...

    def table(self) -> ThinTable: ...

    def extents(self, begin_vblock: int = 0, end_vblock: int | None = None) -> Iterator[Extent]:
        """Mapped runs in order of virtual block, as long as they can be, clipped to the range."""
        ...

    def resize(self, length_sectors: int) -> None:
        """Load a table of another length and resume. Shrinking hides the tail; its blocks stay mapped."""
        ...

    def suspend(self) -> None:
        """Finish what is under way, flush, and refuse I/O until `resume`."""
        ...

    def resume(self) -> None: ...


@runtime_checkable
class Pool(Protocol):
    """An open pool. Every message commits before it returns; a message that fails changes nothing."""

    @property
    def name(self) -> str: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def no_space_timeout_seconds(self) -> float:
        """How long a full pool lets writes wait before they fail; 0 is for ever."""
        ...

    def create_thin(self, thin_id: int) -> None:
        """Raises ThinExists; InvalidRequest outside 24 bits; PoolModeError in `ro` and failed pools."""
        ...

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        """Raises ThinExists (looked at first), NoSuchThin for the origin, else as `create_thin`."""
        ...

    def delete(self, thin_id: int) -> None:
        """Raises NoSuchThin; ThinBusy while the id is active under any name."""
        ...

    def set_transaction_id(self, old: int, new: int) -> None:
        """Compare and swap. Raises InvalidRequest when `old` is not the current one."""
        ...

    def reserve_metadata_snap(self) -> None:
        """Hold a read-only copy of the roots. Raises ThinBusy's errno EBUSY when one is held."""
        ...

    def release_metadata_snap(self) -> None:
        """Raises InvalidRequest when none is held."""
        ...

    def message(self, text: str) -> None:
        """Any of the above in the kernel's words, for example `create_snap 7 1`."""
        ...

    def status(self, *, flush: bool = True) -> PoolStatus | UnreadableStatus:
        """Pool figures; with `flush` the pool commits first, so that freed blocks show."""
        ...

    def table(self) -> PoolTable: ...

    def thin_ids(self) -> list[int]:
        """Ids in the pool, ascending."""
        ...

    def thin_status(self, thin_id: int) -> ThinStatus | UnreadableStatus:
        """Mapped figures of a thin, active or not. Raises NoSuchThin."""
        ...

    def activate(
        self,
        name: str,
        thin_id: int,
        length_sectors: int,
        *,
        read_only: bool = False,
        external_origin: str | None = None,
    ) -> ThinDevice:
        """Make a thin usable as a disk.

        Args:
            name: unused among the active devices of this pool.
            external_origin: path of a device or file, opened read-only, behind unmapped blocks.

        Raises:
            InvalidRequest: name in use, bad id or length, pool suspended or failed.
            NoSuchThin: the id is not in the pool.
        """
        ...

    def active(self) -> list[ThinDevice]: ...

    def reload(self, table: PoolTable) -> None:
        """Put another table in the inactive slot; `resume` makes it live. Grows data, changes features.

        Raises InvalidRequest: other devices or block size, or discard support turned on or off. A shorter
        pool is refused by the resume.
        """
        ...

    def suspend(self) -> None:
        """Stop thin I/O and commit. Messages still work."""
        ...

    def resume(self) -> None:
        """Take the loaded table if any, see devices that grew, re-arm the low water event, let I/O go on."""
        ...

    @property
    def event_counter(self) -> int:
        """Counts low water, mode changes, out of space and its timeout."""
        ...

    def tick(self) -> None:
        """Do what time alone makes due: the commit one second after the last one, the end of queueing."""
        ...

    def extra_space_wait_seconds(self) -> float:
        """How much longer a write that was refused with `may_queue` may wait; 0 when it must fail now."""
        ...

    def commit(self) -> None: ...

    def open_metadata(self) -> BlockDevice:
        """The committed metadata, for reading by `cowfs.thinmeta`. The caller closes it."""
        ...

    def read_metadata(self, read: Callable[[BlockDevice, bool], T]) -> T:
        """Let `read(device, held)` read the metadata as of now with `cowfs.thinmeta`, in place: for a few blocks of it.

        `held` says to read what the metadata snapshot holds. What `read` raises is passed on; it may be called twice.
        """
        ...

    def close(self) -> None:
        """Deactivate every thin, commit, release the devices. A second close does nothing."""
        ...


@runtime_checkable
class NodeThin(ThinDevice, Protocol):
    """A thin with a block device node of the kernel. With `Capability.KERNEL_NODES` every active thin is one."""

    @property
    def node(self) -> str:
        """Path of the node, for mount(2) and for tools."""
        ...

    def hand_over(self) -> int:
        """Leave the device to the users of its node; it is removed with the last of them, as the pool is.

        Returns:
            A descriptor of the node, the first user, which the caller closes.
        """
        ...

    def keep(self) -> str:
        """Leave the device active, with or without users of its node, until `NodePool.end_kept` or the next boot.

        Returns:
            The path of the node.
        """
        ...


@runtime_checkable
class PoolWithTimeout(Pool, Protocol):
    """A pool with a queue time-out of its own. The kernel has one for all of its pools, a parameter of the module."""

    def set_no_space_timeout(self, seconds: float) -> None:
        """How long a full pool lets writes wait from now on; 0 is for ever."""
        ...


@runtime_checkable
class GroupingPool(Pool, Protocol):
    """A pool that can commit several messages at once."""

    def together(self) -> AbstractContextManager[None]:
        """The messages sent in the block become durable when it ends, all of them or none; a flush in between may end
        the group early. What stops the commit is raised by the block's end. Not nested.
        """
        ...


@runtime_checkable
class BreakablePool(Pool, Protocol):
    """A pool in this process: for tests, its devices can be made to fail, and it can be brought into a bad mode."""

    def disks(self) -> dict[str, BlockDevice]:
        """The devices that it reads and writes, `data` and `metadata`; their methods are looked up at each use."""
        ...

    def degrade(self, mode: PoolMode, *, needs_check: bool = False) -> None:
        """Go into a mode, as if what leads to it had happened. What was done before is committed first.

        The mode ends as it would have ended: OUT_OF_DATA_SPACE with the next commit, as long as blocks are free.
        """
        ...


DiskRole: TypeAlias = Literal["data", "metadata"]


class DiskFault(msgspec.Struct, frozen=True):
    """What happens, on purpose and each time, to requests to one of a pool's devices.

    Args:
        kind: they fail with EIO, succeed without being done, or wait for `seconds` first.
        operations: of `read`, `write`, `discard` and `flush`.
        begin, end: bytes of the device; to its end where `end` is None.
    """

    role: DiskRole
    kind: Literal["error", "lose", "delay"]
    operations: frozenset[str]
    begin: int = 0
    end: int | None = None
    seconds: float = 0.0


@runtime_checkable
class LayeredPool(Pool, Protocol):
    """A pool of the kernel, below which devices can be put that fail on demand, for tests."""

    def put_faults_below(self, faults: Sequence[DiskFault]) -> None:
        """Have the pool's devices meet these faults, in the place of those before; none leaves everything as it was.

        Raises:
            InvalidRequest: the kernel has nothing that does this.
            ThinBusy: a thin device is in use, and no fault was put below the pool before.
        """
        ...


@runtime_checkable
class NodePool(Pool, Protocol):
    """A pool whose thins may be in use beyond this object and this process, through their nodes.

    A thin whose node is open elsewhere is held still by `create_snap`; it can be neither deleted nor activated
    (ThinBusy).
    """

    def open_nodes(self) -> dict[int, list[int]]:
        """Ids of thins whose nodes are open elsewhere, or kept, with the device numbers of these nodes."""
        ...

    def kept_nodes(self) -> dict[int, str]:
        """Ids of thins that were left active (`NodeThin.keep`), with the paths of their nodes."""
        ...

    def end_kept(self, thin_id: int) -> None:
        """Deactivate one of them.

        Raises:
            ThinBusy: a process has its node open; the message names it, if that is known.
            InvalidRequest: it is none.
        """
        ...

    def create_snaps(self, origins: Mapping[int, int]) -> None:
        """Snapshots of several thins as they are at one moment: the origin's id, by the new id.

        Raises:
            as `create_snap`; those that were made before stay.
        """
        ...

    def open_data(self) -> BlockDevice:
        """What is on the data device now, for reading. The caller closes it."""
        ...

    def open_events(self) -> int:
        """A descriptor to wait for events on, which the caller closes."""
        ...

    def arm_events(self, fd: int) -> None:
        """Make the descriptor readable at the next event, of this pool or another; until then it is not.

        Look at `event_counter` after this and wait then, and no event is missed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A way to run pools. Registered under the entry-point group `cowfs.backends`."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capability: ...

    def probe(self) -> ProbeResult:
        """Whether pools can be opened here, found by trying. What the machine answers is in the result, not raised."""
        ...

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> Pool:
        """Load and resume a pool; its devices are the paths in the table.

        Args:
            durable: False gives up flushes (a crash of the machine may lose or damage the pool), for throw-away pools.

        Raises:
            InvalidRequest: anything the kernel's constructor refuses, with its errno (EINVAL, EBUSY, EPERM).
            MetadataCorrupt: bad magic or checksum (EILSEQ), wrong block number (ENOTBLK).
        """
        ...


@runtime_checkable
class BackendWithClock(Backend, Protocol):
    """A backend whose pools can go by another clock than the real one."""

    def with_clock(self, clock: Callable[[], float]) -> Backend:
        """The same backend, for pools that go by this clock [seconds]."""
        ...


@runtime_checkable
class NodeBackend(Backend, Protocol):
    """A backend with `Capability.KERNEL_NODES`: its pools are devices, which cowfs need not have made."""

    def open_existing_pool(self, name: str, *, durable: bool = True) -> Pool:
        """Use a pool that cowfs did not make; it is never made, changed nor removed.

        Raises:
            InvalidRequest: no such device (ENXIO), it is suspended (EBUSY), or it is not a pool.
        """
        ...
