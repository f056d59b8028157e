"""Requests about sizes and space: what occupies it, giving it back, growing a device or the pool, a full pool."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec

from cowfs.devices.reports import UsageRow
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Listing, Request, batched
from cowfs.steps import Pieces, Steps

NoSpaceChoice: TypeAlias = Literal["queue", "error"]
"""What writes to a full pool do: wait for space, or fail."""


class TrimmedDevice(msgspec.Struct, frozen=True):
    """Bytes that a trim unmapped from a device. `freed_bytes` of them are free; other devices map the rest."""

    name: str
    unmapped_bytes: int
    freed_bytes: int


class Resized(msgspec.Struct, frozen=True):
    """A device that grew, from `old_size_bytes`."""

    name: str
    id: int
    old_size_bytes: int
    size_bytes: int


class ResizedPool(msgspec.Struct, frozen=True):
    """What a pool has, and had, of data and of metadata."""

    old_data_bytes: int
    data_bytes: int
    old_metadata_bytes: int
    metadata_bytes: int


class Usage(Listing[UsageRow], frozen=True, tag="usage"):
    """What every device occupies, by name, then what every thin does that belongs to none."""

    def run(self, home: OpenHome) -> Pieces[UsageRow]:
        for records in batched(home.devices.records()):
            yield from home.devices.reports.usage([record.name for record in records]).values()
        yield from home.devices.reports.orphan_usage()


class Trim(Request[TrimmedDevice], frozen=True, tag="trim"):
    """Give back to the pool what the file system in a device does not use, mounted or not.

    Raises:
        UnknownDevice, FilesystemError; DeviceBusy: it is in use as a disk, or mounted by the kernel.
    """

    is_whole: ClassVar[bool] = False

    name: str

    def run(self, home: OpenHome) -> Steps[TrimmedDevice]:
        unmapped_bytes, freed_bytes = yield from home.volumes.trim(self.name)
        return TrimmedDevice(self.name, unmapped_bytes, freed_bytes)


class Resize(Request[Resized], frozen=True, tag="resize"):
    """Grow a device that is not in use, and the file system in it: wholly, or not at all after any failure.

    Raises:
        UsageError: a smaller size, or one that cannot be.
        UnknownDevice, DeviceBusy, FilesystemError, OutOfDataSpace, OutOfMetadataSpace.
    """

    name: str
    size_bytes: int

    needs_idle = "name"

    def run(self, home: OpenHome) -> Resized:
        before = home.devices.record(self.name)
        home.require_idle(self.name, "resized")
        after = home.devices.resize(self.name, self.size_bytes)
        return Resized(after.name, after.device_id, before.size_bytes, after.size_bytes)


class ResizePool(Request[ResizedPool], frozen=True, tag="resize_pool"):
    """Make the pool larger, also while devices of it are mounted. Without a size, a device is taken as large as it is.

    Raises:
        UsageError: a smaller size, or one that cannot be.
        OutOfMetadataSpace: so much data needs more metadata.
    """

    data_size_bytes: int | None = None
    metadata_size_bytes: int | None = None

    def run(self, home: OpenHome) -> ResizedPool:
        before = home.devices.reports.status()
        after = home.devices.resize_pool(
            data_size_bytes=self.data_size_bytes, metadata_size_bytes=self.metadata_size_bytes
        )
        return ResizedPool(
            before.data_total_bytes, after.data_total_bytes, before.metadata_total_bytes, after.metadata_total_bytes
        )


class NoSpaceSetting(msgspec.Struct, frozen=True):
    """`no_space` is queue or error. `timeout_seconds` is 0 for ever, and null where the pool does not know."""

    no_space: str
    timeout_seconds: float | None


class SetNoSpace(Request[NoSpaceSetting], frozen=True, tag="set_no_space"):
    """What writes to a full pool do from now on, those that wait already included. None leaves a setting as it is.

    `policy`: `error` to fail at once, `queue` to wait for `timeout_seconds` (0: for ever), then fail. The home
    remembers both.

    Raises:
        UsageError: a pool that the home did not make, or a time-out that the pool has not to itself: the kernel has one
            for all of its pools.
    """

    policy: NoSpaceChoice | None = None
    timeout_seconds: float | None = None

    def run(self, home: OpenHome) -> NoSpaceSetting:
        error = None if self.policy is None else self.policy == "error"
        status = home.devices.set_no_space(error=error, timeout_seconds=self.timeout_seconds)
        return NoSpaceSetting(status.no_space, status.no_space_timeout_seconds)
