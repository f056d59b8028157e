"""Requests about sizes and space: growing a device, growing the pool."""

from __future__ import annotations

import msgspec

from cowfs.host.request import Host, Request


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


class Resize(Request[Resized], frozen=True, tag="resize"):
    """Grow a device that is not in use, and the file system in it."""

    name: str
    size_bytes: int

    def device_to_let_go(self) -> str:
        return self.name

    def run(self, host: Host) -> Resized:
        before = host.devices.record(self.name)
        host.require_unused(before, "resized")
        after = host.devices.resize(self.name, self.size_bytes)
        return Resized(after.name, after.device_id, before.size_bytes, after.size_bytes)


class ResizePool(Request[ResizedPool], frozen=True, tag="resize_pool"):
    """Grow the pool, mounted or not. Without a size, its devices are taken as large as they are."""

    data_size_bytes: int | None = None
    metadata_size_bytes: int | None = None

    def run(self, host: Host) -> ResizedPool:
        before = host.devices.status()
        after = host.devices.resize_pool(
            data_size_bytes=self.data_size_bytes, metadata_size_bytes=self.metadata_size_bytes
        )
        return ResizedPool(
            before.data_total_bytes, after.data_total_bytes, before.metadata_total_bytes, after.metadata_total_bytes
        )
