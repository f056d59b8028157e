"""What can be asked of a home: each operation a typed request that runs on the process holding it.

A request is a frozen struct; `run` does it on an `OpenHome`. Where another process holds the home, the struct is sent
over its control socket, and that process calls the same `run`. So there is one implementation of each operation, and
these classes are the protocol.

Sizes are in bytes, whatever the name; ids and transactions are the pool's own numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar

import msgspec

from cowfs.devices.on_disk.names import BASE
from cowfs.devices.reports import DeviceReport, DeviceRow, DeviceUse, HomeReport, MountedView, UsageRow
from cowfs.devices.uses import require_idle
from cowfs.error_record import plain_text
from cowfs.errors import HomeError, MetadataCorrupt, NoSuchThin, PoolModeError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Listing, OpenFile, Renaming, Replaced, Request, batched
from cowfs.home.snapshot_keys import SnapshotKey, require_no_snapshot, snapshot_keys
from cowfs.pool import PoolStatus, ThinStatus, ThinTable, UnreadableStatus
from cowfs.steps import Pieces
from cowfs.units import Sectors, ThinId

if TYPE_CHECKING:
    from cowfs.devices.on_disk.records import DeviceRecord


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


class Activated(msgspec.Struct, frozen=True):
    """A device with a node of the kernel, by path."""

    name: str
    node: str
    read_only: bool


class RolledBack(msgspec.Struct, frozen=True):
    """A device that holds what `snapshot` held then. `kept` is the device with what it held before, null for none.

    `is_related`: one is known to descend from the other, or both from the same device; all do from the base.
    """

    name: str
    id: int
    snapshot: str
    size_bytes: int
    old_size_bytes: int
    kept: str | None
    is_related: bool


# --- operations -----------------------------------------------------------------------------------------------------


class Status(Request[HomeReport], frozen=True, tag="status"):
    """The figures of the home and its pool."""

    only_reads = True

    def run(self, home: OpenHome) -> HomeReport:
        return msgspec.structs.replace(
            home.devices.reports.status(),
            backend=home.backend,
            holder_pid=os.getpid() if home.is_serving else None,
            views=home.all_views(),
            uses=home.all_uses(),
            faults=home.fault_count,
        )


class ListDevices(Listing[DeviceRow], frozen=True, tag="list"):
    """Every device by name, `base` included; those removed while the list is read are left out.

    Takes time in proportion to what each device holds alone.
    """

    def run(self, home: OpenHome) -> Pieces[DeviceRow]:
        keys = snapshot_keys(home.path)
        for records in batched(home.devices.records()):
            views = home.all_views()
            names = [record.name for record in records]
            try:
                found = home.devices.reports.usage_and_contents(names)
            except (MetadataCorrupt, PoolModeError):  # among the problems of `status`
                found = None
            # The rows of a batch are of one moment.
            yield from [_row(home, record, found, views, keys) for record in records if record.name in home.devices]


class Inspect(Request[DeviceReport], frozen=True, tag="inspect"):
    """Everything about one device. Raises UnknownDevice."""

    only_reads = True

    name: str

    def run(self, home: OpenHome) -> DeviceReport:
        report = home.devices.reports.inspect(self.name)
        return msgspec.structs.replace(
            report, views=home.views_of(home.devices.record(self.name)), uses=home.uses_of(self.name)
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
        return Created(record.name, record.device_id, record.size_bytes, record.parent, home.devices.reports.warnings())


class CreateMany(Request[list[Created]], frozen=True, tag="create_many"):
    """As `create`, for several devices of the same moment: all of them, or none.

    Raises:
        UsageError: no name, a name twice, too.
    """

    names: list[str]
    parent: str | None = None
    size_bytes: int | None = None

    def summary(self) -> str:
        return f"create {len(self.names)} devices"

    def devices_read(self) -> tuple[str, ...]:
        return (BASE if self.parent is None else self.parent,)

    def run(self, home: OpenHome) -> list[Created]:
        made = home.devices.create_many(self.names, parent=self.parent, size_bytes=self.size_bytes)
        warnings = home.devices.reports.warnings()
        return [Created(it.name, it.device_id, it.size_bytes, it.parent, warnings) for it in made]


class Rollback(Request[RolledBack], frozen=True, tag="rollback"):
    """Have a device hold again what another one does, usually a snapshot of it; name, parent and children stay.

    It takes no longer the more is mapped, but for freeing what the device alone held. It has the snapshot's size then.
    A mount shows the new content at once. The snapshot stays, and may be mounted and busy.

    Args:
        keep: a new device, which gets what the device held until then.
        force: detach what is open in the device; it gets ESTALE from then on, and what it writes is lost. What was
            written before is in the device that is kept.

    Raises:
        UsageError: the base device, a device to itself, a layer to what is none, a name that cannot be.
        UnknownDevice, DeviceExists: one is not there, or `keep` is taken.
        DeviceBusy: something is open in it, and the message says who has it open; or it is mounted by the kernel, as a
            layer, or open as a disk, whatever `force` says.
        OutOfDataSpace, OutOfMetadataSpace: less than the minimum is free for one more device.
    """

    name: str
    snapshot: str
    keep: str | None = None
    force: bool = False

    def check(self, home: OpenHome) -> None:
        home.devices.check_rollback(self.name, self.snapshot, keep=self.keep)
        require_idle(self.name, _uses_beside_views(home, self.name), "rolled back")

    reads = ("snapshot", "name")

    def device_replaced(self) -> Replaced:
        return Replaced(self.name, self.force)

    def run(self, home: OpenHome) -> RolledBack:
        self.check(home)
        require_no_snapshot(home.path, self.name, "rolled back")
        home.require_idle(self.name, "rolled back")
        before = home.devices.record(self.name)
        is_related = home.devices.are_related(self.name, self.snapshot)
        after = home.devices.roll_back(self.name, self.snapshot, keep=self.keep)
        return RolledBack(
            name=after.name,
            id=after.device_id,
            snapshot=plain_text(self.snapshot),
            size_bytes=after.size_bytes,
            old_size_bytes=before.size_bytes,
            kept=self.keep,
            is_related=is_related,
        )


class Rename(Request[Renamed], frozen=True, tag="rename"):
    """Give a device another name, all of it or nothing; its children are its children as before.

    A mount of the whole home shows it under the new name at once. A mount of the device alone goes on, and so does what
    is open in it.

    Raises:
        UsageError: a name that cannot be, or the base device.
        DeviceExists, UnknownDevice: `new_name` is taken, or `name` is not there.
        DeviceBusy: it is mounted by the kernel or as a layer, or open as a disk; one of its files is open in a mount of
            the whole home, or a deleted one in a separate mount.
    """

    name: str
    new_name: str

    def check(self, home: OpenHome) -> None:
        home.devices.check_rename(self.name, self.new_name)
        require_idle(self.name, _uses_beside_views(home, self.name), "renamed")

    def device_renamed(self) -> Renaming:
        return Renaming(self.name, self.new_name)

    def run(self, home: OpenHome) -> Renamed:
        self.check(home)
        require_no_snapshot(home.path, self.name, "renamed")
        home.require_idle(self.name, "renamed")
        record = home.devices.rename(self.name, self.new_name)
        return Renamed(record.name, self.name, record.device_id)


class Remove(Request[bool], frozen=True, tag="remove"):
    """Remove a device; its snapshots keep what they share with it.

    Args:
        deferred: one that is in use is marked for deletion, and removed when its last user ends.

    Returns:
        Whether it is removed; False when it was marked.

    Raises:
        UnknownDevice, DeviceBusy (it is mounted or open), UsageError (the base device).
    """

    name: str
    deferred: bool = False

    needs_idle = "name"

    def device_given_up(self) -> str | None:
        return self.name if self.deferred else None

    def run(self, home: OpenHome) -> bool:
        name = home.devices.record(self.name).name
        require_no_snapshot(home.path, name, "removed")
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
            yield TargetLine(home.devices.active.target_name(record.name), table.format())


class TargetStatus(Listing[TargetLine], frozen=True, tag="dmstatus"):
    """The lines of `dmsetup status`: the pool's, then every device's."""

    def run(self, home: OpenHome) -> Pieces[TargetLine]:
        pool = home.devices.pool
        yield TargetLine(pool.name, f"0 {pool.table().length_sectors} thin-pool {_figures(pool.status())}")
        for record in home.devices.records():
            try:
                figures = _figures(pool.thin_status(record.device_id))
            except NoSuchThin:  # a record without a thin
                continue
            yield TargetLine(home.devices.active.target_name(record.name), f"0 {record.length_sectors} thin {figures}")


class CopyMetadata(Request[OpenFile], frozen=True, tag="copy_metadata"):
    """The pool's metadata as it is committed now, in a separate file without a name.

    What takes long to read (check, dump, delta) is read from the copy by the client, while the home is in use. Only
    what holds data is copied (by reference where the file system can), so a 2 GiB metadata file of a small pool takes
    milliseconds.
    """

    only_reads = True

    def run(self, home: OpenHome) -> OpenFile:
        import tempfile

        from cowfs.blockdev import copy_contents

        home.devices.pool.commit()
        with closing(home.devices.pool.open_metadata()) as source:
            try:
                with tempfile.TemporaryFile(dir=home.path / "devicemapper", buffering=0) as file:
                    os.ftruncate(file.fileno(), source.size_bytes)
                    copy_contents(source, file.fileno())
                    return OpenFile(os.dup(file.fileno()))
            except OSError as error:
                raise HomeError(
                    f"cannot copy the metadata of {home.path} for reading: {error.strerror or error}; unmount, then "
                    "run it again",
                    errno=error.errno,
                ) from error


class OpenNode(Request[OpenFile], frozen=True, tag="open_node"):
    """An open node of an idle device; the device is active until its last user ends."""

    name: str

    needs_idle = "name"

    def run(self, home: OpenHome) -> OpenFile:
        return OpenFile(home.devices.active.open_node(self.name))


class Activate(Request[Activated], frozen=True, tag="activate"):
    """Make an idle device a node of the kernel, for any tool, until `deactivate` or the next boot.

    Args:
        read_only: the node can only be read.

    Raises:
        UnknownDevice; DeviceBusy: it is in use, or active already.
        MissingRequirement: the backend has no nodes.
    """

    name: str
    read_only: bool = False

    needs_idle = "name"

    def run(self, home: OpenHome) -> Activated:
        home.devices.record(self.name)
        home.require_idle(self.name, "activated")
        return Activated(self.name, home.devices.active.keep_node(self.name, read_only=self.read_only), self.read_only)


class Deactivate(Request[None], frozen=True, tag="deactivate"):
    """End what `activate` began.

    Raises:
        UnknownDevice; UsageError: it was not activated.
        DeviceBusy: a process has the node open; the message names it, if that is known.
    """

    name: str

    def run(self, home: OpenHome) -> None:
        home.devices.active.end_kept(self.name)


class ShowNode(Request[str], frozen=True, tag="show_node"):
    """The path of a device's node of the kernel, which lasts until `HideNode` or the next boot.

    As `Activate`, also where the node is there already.
    """

    is_local: ClassVar[bool] = True

    name: str

    needs_idle = "name"

    def run(self, home: OpenHome) -> str:
        active = home.devices.active
        return active.kept_nodes().get(self.name) or active.keep_node(self.name)


class HideNode(Request[None], frozen=True, tag="hide_node"):
    """End what `ShowNode` began, if it did.

    Raises:
        UnknownDevice; DeviceBusy: a process has the node open.
    """

    is_local: ClassVar[bool] = True

    name: str

    def run(self, home: OpenHome) -> None:
        if self.name in home.devices.active.kept_nodes():
            home.devices.active.end_kept(self.name)


# --- helpers --------------------------------------------------------------------------------------------------------


def _uses_beside_views(home: OpenHome, name: str) -> Iterator[DeviceUse]:
    """The uses of a device that no view can interrupt."""
    return (use for use in home.uses_of(name) if use.kind not in ("home", "tree", "raw", "reader"))


def _row(
    home: OpenHome,
    record: DeviceRecord,
    found: dict[str, tuple[UsageRow, str | None]] | None,
    views: Sequence[MountedView],
    keys: Mapping[str, SnapshotKey],
) -> DeviceRow:
    usage, contents = (found or {}).get(record.name, (None, None))
    unknown = None if found is None else 0  # a record without its thin occupies nothing
    return DeviceRow(
        name=record.name,
        id=record.device_id,
        size_bytes=record.size_bytes,
        mapped_bytes=usage.mapped_bytes if usage else unknown,
        exclusive_bytes=usage.exclusive_bytes if usage else unknown,
        parent=record.parent,
        deleted=record.deleted,
        mounted=[view.mount_point for view in home.views_of(record, views)],
        contents=contents,
        snapshot=plain_text(str(keys[record.name])) if record.name in keys else None,
    )


def _figures(status: PoolStatus | ThinStatus | UnreadableStatus) -> str:
    return status.value if isinstance(status, UnreadableStatus) else status.format()
