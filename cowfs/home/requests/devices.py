"""What can be asked of a home: each operation a typed request that runs on the process holding it.

A request is a frozen struct; `run` does it on an `OpenHome`. Where another process holds the home, the struct is sent
over its control socket, and that process calls the same `run`. So there is one implementation of each operation, and
these classes are the protocol.

Sizes are in bytes, whatever the name; ids and transactions are the pool's own numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cowfs.devices.on_disk.names import BASE
from cowfs.devices.uses import DeviceUse
from cowfs.error_record import plain_text
from cowfs.errors import MetadataCorrupt, NoSuchThin, PoolModeError
from cowfs.home.open_home import MountedView, OpenHome
from cowfs.home.requests.request import Listing, OpenFile, Request, batched
from cowfs.pool import NoSpacePolicy, PoolStatus, ThinStatus, ThinTable, UnreadableStatus
from cowfs.steps import Pieces
from cowfs.units import Sectors, ThinId

if TYPE_CHECKING:
    from cowfs.devices.on_disk.records import DeviceFigures, DeviceRecord


# --- answers --------------------------------------------------------------------------------------------------------


class Created(msgspec.Struct, frozen=True):
    """A device just made. `warnings`: what space of the pool is running out, in words."""

    name: str
    id: int
    size_bytes: int
    parent: str | None
    warnings: list[str]


class Renamed(msgspec.Struct, frozen=True):
    """A device with a new name."""

    name: str
    old_name: str
    id: int


class DeviceRow(msgspec.Struct, frozen=True):
    """A device in a list. `exclusive_bytes` is what removing it gives back; `parent` is null where it is not known.

    Both figures are null where the pool cannot tell them.

    `deleted`: it is marked for deletion, and goes when nothing uses it any more.
    """

    name: str
    id: int
    size_bytes: int
    mapped_bytes: int | None
    exclusive_bytes: int | None
    parent: str | None
    deleted: bool
    mounted: list[str]


class DeviceReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about one device; the two times are values of the pool's snapshot counter, not of a clock.

    `uses`: who uses it; left out where nothing does.
    """

    name: str
    id: int
    size_bytes: int
    mapped_bytes: int
    exclusive_bytes: int
    highest_mapped_byte: int | None
    parent: str | None
    children: list[str]
    created_transaction_id: int
    creation_time: int
    snapshotted_time: int
    active: bool
    deleted: bool
    views: list[MountedView]
    uses: list[DeviceUse] = []


class HomeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of a home.

    `mode` is one of write, out_of_data_space, out_of_metadata_space, read_only and fail. `holder_pid` is null when
    nobody held the home before it was asked. `host_free_bytes` is what the file system under the data file still has.
    `uses`: who uses its devices; left out where nothing does.
    """

    home: str
    backend: str
    holder_pid: int | None
    views: list[MountedView]
    pool: str
    mode: str
    no_space: str
    no_space_timeout_seconds: float | None
    needs_check: bool
    transaction_id: int
    block_bytes: int
    data_used_bytes: int
    data_total_bytes: int
    metadata_used_bytes: int
    metadata_total_bytes: int
    min_free_percent: int
    min_free_bytes: int | None
    metadata_snapshot_block: int | None
    devices: int
    deleted_devices: int
    base_size_bytes: int
    base_uuid: str
    data_file: str
    data_file_allocated_bytes: int
    metadata_file: str
    host_free_bytes: int
    orphan_thin_ids: list[int]
    problems: list[str]
    warnings: list[str]
    uses: list[DeviceUse] = []


# --- operations -----------------------------------------------------------------------------------------------------


class Status(Request[HomeReport], frozen=True, tag="status"):
    """The figures of the home and its pool."""

    def run(self, home: OpenHome) -> HomeReport:
        status = home.devices.status()
        pool = status.pool
        return HomeReport(
            home=plain_text(str(home.path)),
            backend=home.backend,
            holder_pid=os.getpid() if home.is_serving else None,
            views=home.all_views(),
            pool=status.pool_name,
            mode=status.mode.name.lower(),
            no_space="queue" if status.no_space is NoSpacePolicy.QUEUE else "error",
            no_space_timeout_seconds=status.no_space_timeout_seconds,
            needs_check=status.needs_check,
            transaction_id=status.transaction_id,
            block_bytes=status.block_bytes,
            data_used_bytes=status.data_used_bytes,
            data_total_bytes=status.data_total_bytes,
            metadata_used_bytes=status.metadata_used_bytes,
            metadata_total_bytes=status.metadata_total_bytes,
            min_free_percent=status.min_free_percent,
            min_free_bytes=status.min_free_bytes,
            metadata_snapshot_block=pool.held_root if isinstance(pool, PoolStatus) else None,
            devices=status.device_count,
            deleted_devices=status.deleted_count,
            base_size_bytes=status.base_size_bytes,
            base_uuid=status.base_uuid,
            data_file=plain_text(status.data_file),
            data_file_allocated_bytes=status.data_file_allocated_bytes,
            metadata_file=plain_text(status.metadata_file),
            host_free_bytes=status.backing_free_bytes,
            orphan_thin_ids=list(status.orphan_thin_ids),
            problems=[plain_text(problem) for problem in status.problems],
            warnings=list(status.warnings),
            uses=_plain(home.all_uses()),
        )


class ListDevices(Listing[DeviceRow], frozen=True, tag="list"):
    """Every device by name, `base` included; those removed while the list is read are left out.

    Takes time in proportion to what each device holds alone.
    """

    def run(self, home: OpenHome) -> Pieces[DeviceRow]:
        for records in batched(home.devices.records()):
            views = home.all_views()
            try:
                figures = home.devices.figures_of([record.name for record in records])
            except (MetadataCorrupt, PoolModeError):  # among the problems that `status` tells
                figures = None
            # The rows of a batch are of one moment.
            yield from [_row(home, record, figures, views) for record in records if record.name in home.devices]


class Inspect(Request[DeviceReport], frozen=True, tag="inspect"):
    """Everything about one device. Raises UnknownDevice."""

    name: str

    def run(self, home: OpenHome) -> DeviceReport:
        record = home.devices.record(self.name)
        figures = home.devices.figures(self.name)
        thin_id = record.device_id
        return DeviceReport(
            name=plain_text(record.name),
            id=thin_id,
            size_bytes=record.size_bytes,
            mapped_bytes=figures.mapped_bytes,
            exclusive_bytes=figures.exclusive_bytes,
            highest_mapped_byte=figures.highest_mapped_byte,
            parent=plain_text(record.parent) if record.parent is not None else None,
            children=[plain_text(other.name) for other in home.devices.records() if other.parent == record.name],
            created_transaction_id=figures.created_transaction_id,
            creation_time=figures.creation_time,
            snapshotted_time=figures.snapshotted_time,
            active=any(thin.thin_id == thin_id for thin in home.devices.pool.active())
            or self.name in home.devices.lent(),
            deleted=record.deleted,
            views=home.views_of(record),
            uses=_plain(home.uses_of(self.name)),
        )


class Create(Request[Created], frozen=True, tag="create"):
    """A new device: a snapshot of `parent`, or of the base device, an empty ext4.

    It costs the same whatever the parent holds. A mounted parent is brought to a consistent state first.

    Args:
        size_bytes: at least the parent's size, which is the default.

    Raises:
        UsageError: a name or size that cannot be.
        DeviceExists, UnknownDevice: `name` is taken, or `parent` is not there.
        OutOfDataSpace, OutOfMetadataSpace: less than the home's minimum is free.
    """

    name: str
    parent: str | None = None
    size_bytes: int | None = None

    def devices_read(self) -> tuple[str, ...]:
        return (BASE if self.parent is None else self.parent,)

    def run(self, home: OpenHome) -> Created:
        record = home.devices.create(self.name, parent=self.parent, size_bytes=self.size_bytes)
        return Created(record.name, record.device_id, record.size_bytes, record.parent, home.devices.warnings())


class Rename(Request[Renamed], frozen=True, tag="rename"):
    """Give a device another name, all of it or nothing; its children are its children as before.

    A mount of the whole home shows it under the new name at once.

    Raises:
        UsageError: a name that cannot be, or the base device.
        DeviceExists, UnknownDevice: `new_name` is taken, or `name` is not there.
        DeviceBusy: it is mounted alone or as a layer, or one of its files is open.
    """

    name: str
    new_name: str

    def device_needed_idle(self) -> str:
        return self.name

    def run(self, home: OpenHome) -> Renamed:
        home.require_idle(home.devices.record(self.name).name, "renamed")
        record = home.devices.rename(self.name, self.new_name)
        return Renamed(record.name, self.name, record.device_id)


class Remove(Request[bool], frozen=True, tag="remove"):
    """Remove a device; its snapshots keep what they share with it.

    Args:
        deferred: one that is in use is marked for deletion, and removed when its last user is gone.

    Returns:
        Whether it is gone.

    Raises:
        UnknownDevice, DeviceBusy (it is mounted or open), UsageError (the base device).
    """

    name: str
    deferred: bool = False

    def device_needed_idle(self) -> str:
        return self.name

    def device_given_up(self) -> str | None:
        return self.name if self.deferred else None

    def run(self, home: OpenHome) -> bool:
        name = home.devices.record(self.name).name
        if not self.deferred:
            home.require_idle(name, "removed", " (or remove it with --deferred)")
        return home.devices.remove(self.name, deferred=self.deferred)


class SendMessage(Request[None], frozen=True, tag="message"):
    """Send the pool a message in the kernel's words, such as `create_thin 7`. The home's records do not follow it.

    Raises:
        PoolError: with the kernel's errno.
    """

    text: str

    def run(self, home: OpenHome) -> None:
        home.devices.pool.message(self.text)


class TargetLine(msgspec.Struct, frozen=True):
    """A line of `dmsetup table` or `dmsetup status`; the kernel ends the pool's with a space."""

    name: str
    line: str

    def format(self) -> str:
        return f"{self.name}: {self.line}"


class Table(Listing[TargetLine], frozen=True, tag="table"):
    """The lines of `dmsetup table`: the pool's, then every device's."""

    def run(self, home: OpenHome) -> Pieces[TargetLine]:
        pool = home.devices.pool
        yield TargetLine(pool.name, pool.table().format())
        for record in home.devices.records():
            table = ThinTable(Sectors(record.length_sectors), pool.name, ThinId(record.device_id))
            yield TargetLine(plain_text(home.devices.target_name(record.name)), table.format())


class TargetStatus(Listing[TargetLine], frozen=True, tag="dmstatus"):
    """The lines of `dmsetup status`: the pool's, then every device's."""

    def run(self, home: OpenHome) -> Pieces[TargetLine]:
        pool = home.devices.pool
        yield TargetLine(pool.name, f"0 {pool.table().length_sectors} thin-pool {_figures(pool.status())}")
        for record in home.devices.records():
            try:
                figures = _figures(pool.thin_status(record.device_id))
            except NoSuchThin:  # a record whose thin is gone
                continue
            yield TargetLine(
                plain_text(home.devices.target_name(record.name)), f"0 {record.length_sectors} thin {figures}"
            )


class CopyMetadata(Request[OpenFile], frozen=True, tag="copy_metadata"):
    """The pool's metadata as it is committed now, in a file of its own without a name.

    What takes long to read (check, dump, delta) is read from the copy by whoever asked, while the home goes on.
    """

    def run(self, home: OpenHome) -> OpenFile:
        from cowfs.home.metadata_copy import copy_metadata

        home.devices.pool.commit()
        source = home.devices.pool.open_metadata()
        try:
            return OpenFile(copy_metadata(source, home.path))
        finally:
            source.close()


class OpenNode(Request[OpenFile], frozen=True, tag="open_node"):
    """An open node of a device that nobody uses; the device is active until its last user is gone."""

    name: str

    def device_needed_idle(self) -> str:
        return self.name

    def run(self, home: OpenHome) -> OpenFile:
        return OpenFile(home.devices.lend(self.name))


# --- helpers --------------------------------------------------------------------------------------------------------


def _row(
    home: OpenHome, record: DeviceRecord, figures: dict[str, DeviceFigures] | None, views: Sequence[MountedView]
) -> DeviceRow:
    found = figures.get(record.name) if figures is not None else None
    unknown = None if figures is None else 0  # a record whose thin is gone occupies nothing
    return DeviceRow(
        name=plain_text(record.name),
        id=record.device_id,
        size_bytes=record.size_bytes,
        mapped_bytes=found.mapped_bytes if found else unknown,
        exclusive_bytes=found.exclusive_bytes if found else unknown,
        parent=plain_text(record.parent) if record.parent is not None else None,
        deleted=record.deleted,
        mounted=[view.mount_point for view in home.views_of(record, views)],
    )


def _plain(uses: Sequence[DeviceUse]) -> list[DeviceUse]:
    return [
        msgspec.structs.replace(
            use, device=plain_text(use.device), where=plain_text(use.where) if use.where is not None else None
        )
        for use in uses
    ]


def _figures(status: PoolStatus | ThinStatus | UnreadableStatus) -> str:
    return status.value if isinstance(status, UnreadableStatus) else status.format()


REQUESTS: Final = (
    Status,
    ListDevices,
    Inspect,
    Create,
    Rename,
    Remove,
    SendMessage,
    Table,
    TargetStatus,
    CopyMetadata,
    OpenNode,
)
