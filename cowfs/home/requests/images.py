"""Bringing whole devices in and out: trees as archives or records of files, and chains of devices that share blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from struct import Struct
from typing import ClassVar, Final

import msgspec

from cowfs.copying.records import Batch, Node, records_in
from cowfs.copying.sinks import Copied
from cowfs.copying.tree import Destination, TreeSink
from cowfs.devices.changes.device_imports import NewDevices
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.records import DeviceRecord
from cowfs.errors import UsageError
from cowfs.filetree import ROOT_INODE
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.blocks import all_changes, changes_since, delta_ranges, write_change
from cowfs.home.requests.disks import RANGE_BYTES, Exported, Imported, holds_layer, imported
from cowfs.home.requests.files import take_batches
from cowfs.home.requests.request import StreamIn, StreamOut, Upload
from cowfs.layers.archive.pack import write_archive
from cowfs.layers.archive.unpack import apply_archive
from cowfs.layers.interface import LayerRoot
from cowfs.pool import ThinDevice
from cowfs.steps import Steps

_SMALL_FAMILY: Final = 32


class ImportFiles(StreamIn[Copied], frozen=True, tag="import_files"):
    """Make an ext4 device of batches of records of files, all of them or nothing.

    Args:
        size_bytes: that of the base device when None.

    Raises:
        As `ImportDisk`; CopyError: something cannot be copied.
    """

    name: str
    size_bytes: int | None = None

    def run(self, home: OpenHome) -> Generator[bool, bytes | Batch, Copied]:
        with home.volumes.making(self.name, self.size_bytes, origin=BASE) as volume:
            records = records_in((yield True))
            if not records or not isinstance(records[0], Node) or not records[0].is_directory:
                raise UsageError("not a batch of files: it does not begin with a directory")
            with closing(TreeSink(volume, Destination(ROOT_INODE, b"", b""), self.name)) as sink:
                return (yield from take_batches(sink, records))


class ImportArchive(Upload[Imported], frozen=True, tag="import_archive"):
    """Make an ext4 device of an uncompressed tar archive, all of it or nothing.

    Args:
        size_bytes: that of the base device when None.

    Raises:
        As `ImportDisk`; ArchiveError, BreakoutError: the archive is damaged, or leads out of the device.
    """

    name: str
    size_bytes: int | None = None

    def run(self, home: OpenHome) -> Steps[Imported]:
        with home.volumes.making(self.name, self.size_bytes, origin=BASE) as volume:
            yield from apply_archive(LayerRoot(volume, ROOT_INODE), self.file)
        return imported(home, self.name)


class ExportArchive(StreamOut[Exported], frozen=True, tag="export_archive"):
    """The files of a device as an uncompressed tar archive, in pieces.

    Args:
        sparse: files with holes as sparse entries, which Docker's layer store does not read.

    Raises:
        UnknownDevice, DeviceBusy; FilesystemError: the device has no ext4, or a file cannot be read.
    """

    name: str
    sparse: bool | msgspec.UnsetType = msgspec.UNSET  # an earlier server does not know the field

    reads = ("name",)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, Exported]:
        sent = 0
        with home.driver.reading(self.name) as root:
            for piece in write_archive(root, None, sparse=self.sparse is not False) if root.inode else ():
                sent += len(piece)
                for begin in range(0, len(piece), RANGE_BYTES):
                    yield piece[begin : begin + RANGE_BYTES]
        return Exported(self.name, sent, sent)


class ChainDevice(msgspec.Struct, frozen=True):
    """A device of a chain. `parent` is the number of its parent in the chain, and `origin` that of the device that its
    changes are about: one before it in both cases, and null for the first device. `is_layer`: null where not known.
    """

    name: str
    size_bytes: int
    parent: int | None
    origin: int | None
    is_layer: bool | None = None


class Chain(msgspec.Struct, frozen=True):
    """A device and its descendants, each after its parent, and after the one that it shares most with."""

    devices: list[ChainDevice]
    block_bytes: int
    version: int = 1


CHANGE: Final = Struct("<IBQI")
"""Before a change's data: the device's number, and then the change itself (`cowfs.home.requests.blocks`)."""
_NUMBER: Final = Struct("<I")


class ExportChain(StreamOut[Chain], frozen=True, tag="export_chain"):
    """A device and its descendants, all of one moment: of each the changes that make it of the one nearest to it.

    Snapshots are peers, so that may be its parent or a sister. Each piece is a `CHANGE` and its data; those of the
    first device come first and give all of it.

    Raises:
        UnknownDevice, DeviceBusy.
    """

    name: str
    reads_all_devices: ClassVar[bool] = True

    def run(self, home: OpenHome) -> Generator[bytes | None, None, Chain]:
        devices = home.devices
        family = _family(devices.record(self.name), devices.records())
        members: list[ChainDevice] = []
        with ExitStack() as stack:
            thins = {record.name: stack.enter_context(devices.snapshots.held_still(record.name)) for record in family}
            origins = _nearest(
                family, lambda one, other: _data_blocks(delta_ranges(devices.pool, thins[one], thins[other]))
            )
            numbers = {name: number for number, name in enumerate(origins)}
            records = {record.name: record for record in family}
            for name, origin in origins.items():
                thin = thins[name]
                pool = devices.pool
                changes = changes_since(pool, thins[origin], thin) if origin else all_changes(thin)
                yield from _numbered(numbers[name], changes)
                parent = records[name].parent if members else None
                members.append(
                    ChainDevice(
                        name,
                        records[name].size_bytes,
                        numbers[parent] if parent else None,
                        numbers[origin] if origin else None,
                        records[name].is_layer,
                    )
                )
        return Chain(members, devices.pool.block_bytes)


class ImportChain(StreamIn[list[Imported]], frozen=True, tag="import_chain"):
    """Make the devices of a chain, which share what they shared; none of them after any failure.

    Raises:
        As `ImportDisk`; UsageError: what is sent is not a chain.
    """

    chain: Chain

    def run(self, home: OpenHome) -> Generator[bool, bytes, list[Imported]]:
        members = self.chain.devices
        for number, member in enumerate(members):
            for other in (member.parent, member.origin):
                if (other is None) != (number == 0) or (other is not None and not 0 <= other < number):
                    raise UsageError(f"the chain is damaged: device '{member.name}' does not come after its parent")
        with home.devices.imports.importing_together() as new:
            thins: list[ThinDevice] = []
            while piece := (yield True):
                (number,) = _NUMBER.unpack_from(piece)
                if not len(thins) - 1 <= number < len(members):
                    raise UsageError("the chain is damaged: its changes are not in the order of its devices")
                while len(thins) <= number:
                    thins.append(_begin(new, members, len(thins)))
                write_change(thins[number], piece[_NUMBER.size :], "the chain is damaged")
            while len(thins) < len(members):
                thins.append(_begin(new, members, len(thins)))
            for member, thin in zip(members, thins, strict=True):
                if holds_layer(thin) if member.is_layer is None else member.is_layer:
                    home.devices.imports.note_layer(member.name)
        return [imported(home, member.name) for member in members]


def _begin(new: NewDevices, members: list[ChainDevice], number: int) -> ThinDevice:
    member = members[number]
    parent, origin = (None if other is None else members[other].name for other in (member.parent, member.origin))
    return new.begin(member.name, member.size_bytes, origin=origin, parent=parent)


def _family(first: DeviceRecord, records: list[DeviceRecord]) -> list[DeviceRecord]:
    """A device and its descendants, each after its parent; those marked for deletion are left out."""
    found = [first]
    for record in found:
        found.extend(other for other in records if other.parent == record.name and not other.deleted)
    return found


def _nearest(family: list[DeviceRecord], distance: Callable[[str, str], int]) -> dict[str, str | None]:
    """Of each device the one before it that it shares most with, in an order in which each comes after its parent.

    So blocks that sisters share are given once, though their parent has other ones by now. In large families only the
    parent and the sisters made before and after a device are looked at.
    """
    names = [record.name for record in family]
    parents = {record.name: record.parent for record in family[1:]}
    candidates = _candidates(family) if len(family) > _SMALL_FAMILY else {name: set(names) for name in names}
    found: dict[str, str | None] = {}
    best: dict[str, tuple[int, str | None]] = {names[0]: (0, None)}
    while best:
        name = min(
            (name for name in best if name == names[0] or parents[name] in found), key=lambda name: best[name][0]
        )
        found[name] = best.pop(name)[1]
        for other in candidates[name] - found.keys():
            if (far := distance(name, other)) < best.get(other, (1 << 62, None))[0]:
                best[other] = far, name
    return found


def _candidates(family: list[DeviceRecord]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {record.name: set() for record in family}
    latest: dict[str, str] = {}
    for record in sorted(family[1:], key=lambda record: record.transaction_id):
        parent = record.parent
        assert parent is not None
        for other in {parent, latest.get(parent, parent)}:
            near[other].add(record.name)
            near[record.name].add(other)
        latest[parent] = record.name
    return near


def _data_blocks(ranges: Iterable[tuple[bool, int, int]]) -> int:
    """How many blocks have data in ranges of changes."""
    return sum(length for has_data, _, length in ranges if has_data)


def _numbered(number: int, changes: Iterable[bytes]) -> Iterator[bytes]:
    prefix = _NUMBER.pack(number)
    return (prefix + change for change in changes)
