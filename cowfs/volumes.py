"""The open volumes of a home: one per device, with a count of users (a mounted view, the layer driver).

A volume is an ext4, or an xfs, which is for reading only.

    volumes = Volumes(devices)
    volume = volumes.open("web")      activates the device, checks its file system where needed, opens it
    volumes.open("web") is volume     one more user
    volumes.close("web")              ends one use; the last one closes the volume and deactivates the device
    volumes.close_all()

A snapshot of an open volume is consistent: the volume is quiesced when the device set suspends its device. A volume
that is open and not changed writes nothing.

Memory. However many are open, they cache no more than one alone may: those in use share it (`rebalance`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from cowfs.blockdev import BlockDevice, GatheringDevice
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.pools.contents import without_files
from cowfs.devices.pools.health import require_status
from cowfs.ending import ending_with
from cowfs.errors import (
    FilesystemError,
    OutOfDataSpace,
    OutOfMetadataSpace,
    PoolModeError,
    UnreadableRoot,
    UsageError,
)
from cowfs.ext4.tools.fsck import check_volume, needs_check, prepare_for_mount
from cowfs.ext4.volume import Volume
from cowfs.filetree import FileTree, ServedTree
from cowfs.in_place import put_in_place
from cowfs.pool import ThinDevice, UnreadableStatus
from cowfs.units import SECTOR_BYTES
from cowfs.xfs.signature import holds_xfs

if TYPE_CHECKING:
    from cowfs.recording.recorder import Recorder
    from cowfs.recording.unsynced import Unsynced
    from cowfs.xfs.volume import XfsVolume

_log = logging.getLogger(__name__)
_REPAIR: Final = "'mount --repair' runs e2fsck"
_REPAIR_XFS: Final = "'mount --raw' shows its disk, for xfs_repair or the kernel"
_ONLY_READ: Final = f"holds xfs, whose files are only read here; {_REPAIR_XFS}"
_NO_ROOM_TO_OPEN: Final = "cannot be opened for writing ('mount --read-only' shows its files)"
_NO_ROOM_TO_TRIM: Final = (
    "cannot be trimmed before what was changed in it is on the disk, and that takes free blocks; make the pool a "
    "little larger ('pool resize') and trim it again"
)
_TRIM_STEP_BYTES: Final = 1 << 30
_FILLING_SHARE: Final = 1 / 4  # of memory: what is kept is freed at the end, while others wait


# What reads xfs, and what records, is loaded where a device needs it.
OpenVolume: TypeAlias = "Volume | XfsVolume"


class Trimmed(NamedTuple):
    """Bytes that a trim unmapped from a device, and those of them freed in the pool; others still map the rest."""

    unmapped_bytes: int
    freed_bytes: int


@dataclass(slots=True)
class _Open:
    volume: OpenVolume
    closing: ExitStack
    users: int = 1
    uses_before: int = 0
    last_change: Callable[[FileTree], object] | None = None

    def finish(self) -> None:
        """A last change that fails is logged; what came before it is not to be lost for it."""
        if self.last_change is not None and self.volume.has_changes:
            try:
                self.last_change(self.volume)
            except OSError as error:
                _log.warning("%s", error)

    @property
    def is_used(self) -> bool:
        return self.volume.uses != self.uses_before


class Volumes:
    """Open volumes by device name. One thread at a time.

    Args:
        read_only: volumes are opened for reading only, as they always are in a home that is open read-only, and nothing
            is written to their devices; also damaged ones, to read of them what can be read.
    """

    def __init__(self, devices: DeviceSet, *, read_only: bool = False) -> None:
        self._devices = devices
        self._open: dict[str, _Open] = {}
        self.read_only = read_only or devices.read_only
        self.recorders: dict[str, Recorder] = {}
        self.unsynced: dict[str, Unsynced] = {}  # by device: whose writes are watched, from its next opening on
        self._rescue = read_only
        self._given_up: set[str] = set()

    def open(self, name: str, *, repair: bool = False) -> OpenVolume:
        """The volume of a device; each call needs a `close`. One of xfs is for reading only.

        A file system that was not cleanly unmounted is checked first, unless volumes are for reading only.

        Args:
            repair: let e2fsck repair whatever is damaged, even where that loses something.

        Raises:
            UnknownDevice, NoSuchThin, DeviceBusy: as `ActiveDevices.activate`.
            FilesystemError: no ext4 or xfs, features that are not supported, or damage that a check does not repair.
            OutOfDataSpace, OutOfMetadataSpace: there is no room for what its journal holds.
            MissingRequirement: e2fsprogs or its library are not usable here.
        """
        known = self._open.get(name)
        if known is not None:
            known.users += 1
            return known.volume
        with ExitStack() as undo:
            thin = self._devices.active.activate(name, read_only=self.read_only and not repair)
            undo.enter_context(ending_with(partial(self._devices.active.deactivate, name)))
            if (unsynced := self.unsynced.get(name)) is not None:
                undo.callback(put_in_place(thin, unsynced.under, innermost=True))
            with (
                _named(name, thin, read_only=self.read_only),
                _naming_a_full_pool(f"device '{name}' {_NO_ROOM_TO_OPEN}"),
            ):
                volume = self._open_volume(name, thin, repair=repair)
            undo.enter_context(ending_with(partial(self._write_down, name, volume)))
            if volume.problems:
                problems = "; ".join(volume.problems)
                remedy = _REPAIR if isinstance(volume, Volume) else _REPAIR_XFS
                _log.warning("device '%s': its file system shows what can be read: %s; %s", name, problems, remedy)
            undo.callback(self._devices.active.add_quiescer(name, lambda: _quiesced(volume)))
            opened = self._open[name] = _Open(volume, undo.pop_all())
            opened.closing.callback(opened.finish)
        self._share_memory()
        return volume

    def _open_volume(self, name: str, thin: ThinDevice, *, repair: bool) -> OpenVolume:
        what = f"device {name!r}"
        if holds_xfs(thin):
            if repair:
                raise FilesystemError(f"it holds xfs, which e2fsck cannot repair; {_REPAIR_XFS}", errno=errno.EINVAL)
            from cowfs.xfs.volume import XfsVolume

            return XfsVolume.open(thin, rescue=self._rescue, name=what)
        if repair or not self._rescue:
            self._prepare(thin, repair)
        disk = self._recorded(name, thin)
        return Volume.open(disk, read_only=self.read_only, rescue=self._rescue, name=what)

    def _recorded(self, name: str, thin: ThinDevice) -> BlockDevice:
        """A disk, and with it what records what happens to it, and what watches what is not synced."""
        recorder, unsynced = self.recorders.get(name), self.unsynced.get(name)
        disk = thin if unsynced is None else unsynced.over(thin)
        if recorder is None or recorder.model != "ext4":
            return disk
        from cowfs.recording.journal import RecordingDevice

        return RecordingDevice(disk, recorder, name, discard_bytes=thin.block_bytes)

    def served(self, name: str) -> ServedTree:
        """An open volume, for programs: where its device is recorded, what they do is."""
        volume, recorder = self._open[name].volume, self.recorders.get(name)
        if recorder is None or not isinstance(volume, Volume):
            return volume
        from cowfs.recording.operations import recording_tree

        return recording_tree(volume, recorder)

    def _prepare(self, thin: ThinDevice, repair: bool) -> None:
        if not repair:
            if needs_check(thin):
                prepare_for_mount(thin, read_only=self._devices.read_only)
        elif not (result := check_volume(thin, repair=True)).usable:
            raise FilesystemError(f"e2fsck could not repair it: {result.summary}")

    def close(self, name: str) -> None:
        """End one use. The last one frees what is open without a name, writes everything down, and deactivates.

        Raises:
            UsageError: it is not open.
            CowfsError, OSError: what stopped the writing; the volume is closed all the same.
        """
        opened = self._open.get(name)
        if opened is None:
            raise UsageError(f"the volume of device {name!r} is not open, so it cannot be closed")
        opened.users -= 1
        if not opened.users:
            del self._open[name]
            opened.closing.close()

    def give_up(self, name: str) -> None:
        """What cannot be written of a device that is being removed is logged when its volume is closed, not raised."""
        if name in self._open:
            self._given_up.add(name)

    def _write_down(self, name: str, volume: OpenVolume) -> None:
        try:
            with _naming_a_full_pool(f"not all of device '{name}' could be written; what was synced is in its journal"):
                volume.close()
        except OSError as error:
            if name not in self._given_up:
                raise
            _log.warning("device '%s', which is being removed: %s", name, error)
        finally:
            self._given_up.discard(name)

    def change_last(self, name: str, change: Callable[[FileTree], object]) -> None:
        """Have an open volume changed once more before it is closed, if it was changed at all. The last call counts."""
        self._open[name].last_change = change

    @contextmanager
    def opened(self, name: str) -> Iterator[OpenVolume]:
        """A volume for the length of a `with` block."""
        volume = self.open(name)
        try:
            yield volume
        finally:
            self.close(name)

    @contextmanager
    def opened_for_reading(self, name: str) -> Iterator[OpenVolume]:
        """As `opened`, for a device that is not in use: also where the pool has no room for what its journal holds."""
        try:
            volume = self.open(name)
        except (OutOfDataSpace, OutOfMetadataSpace):
            with (
                self._devices.active.activated(name, "reader", read_only=True) as thin,
                _named(name, thin),
                closing(Volume.open(thin, read_only=True, name=f"device {name!r}")) as shown,
            ):
                yield shown
            return
        try:
            yield volume
        finally:
            self.close(name)

    @contextmanager
    def temporary_snapshot(self, name: str) -> Iterator[tuple[OpenVolume, int]]:
        """A device as it is now, for reading, and the thin that it is on; see `Snapshots.temporary`."""
        with (
            self._devices.snapshots.temporary(name, read_only=False) as thin,
            _named(name, thin),
            closing(self._snapshot_volume(name, thin)) as volume,
        ):
            yield volume, thin.thin_id

    def _snapshot_volume(self, name: str, thin: ThinDevice) -> OpenVolume:
        if holds_xfs(thin):
            from cowfs.xfs.volume import XfsVolume

            return XfsVolume.open(thin, name=f"device {name!r}")
        self._prepare(thin, repair=False)
        return Volume.open(thin, read_only=True, name=f"device {name!r}")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Volume]:
        """A volume whose new content takes the place of the device's when the block ends; see `DeviceSet.replacing`.

        Raises:
            DeviceBusy: the volume is open, or the device in use.
            FilesystemError (EROFS): it holds xfs.
        """
        with self._devices.replacing(name) as thin, self._filling(name, thin) as volume:
            yield volume

    @contextmanager
    def making(self, name: str, size_bytes: int | None, *, origin: str) -> Iterator[Volume]:
        """The volume of a new device, a snapshot of `origin`, which is there when the block ends, or not at all.

        Args:
            size_bytes: that of `origin` when None.

        Raises:
            As `DeviceSet.create`; FilesystemError (EROFS): `origin` holds xfs.
        """
        with (
            self._devices.imports.importing(name, size_bytes, origin=origin) as thin,
            self._filling(name, thin) as volume,
        ):
            yield volume

    @contextmanager
    def _filling(self, name: str, thin: ThinDevice) -> Iterator[Volume]:
        """The volume in a thin that is not shown before it is complete, so it has no journal."""
        with _named(name, thin):
            if holds_xfs(thin):
                raise FilesystemError(f"it {_ONLY_READ}", errno=errno.EROFS)
            self._prepare(thin, repair=False)
            volume = Volume.open(GatheringDevice(thin), journaled=False, name=f"device {name!r}")
            volume.limit_memory(_FILLING_SHARE)
            try:
                yield volume
            except BaseException:
                with suppress(OSError):
                    volume.close()
                raise
            volume.close()

    def rebalance(self) -> None:
        """Share out what may be cached among the volumes used since the last time. Call it every few seconds."""
        self._share_memory()
        for opened in self._open.values():
            opened.uses_before = opened.volume.uses

    def _share_memory(self) -> None:
        used = sum(opened.is_used for opened in self._open.values())
        for opened in self._open.values():
            opened.volume.limit_memory(1 / used if opened.is_used else 0)

    def trim(self, name: str) -> Generator[None, None, Trimmed]:
        """Give back to the pool what the file system of a device does not use, in steps between which it may be used.

        Raises:
            DeviceBusy: something else than files is in use of it: its disk, or a mount by the kernel.
            OutOfDataSpace, OutOfMetadataSpace: there is no room for changes that are not on the disk yet.
        """
        self._devices.guard.check_writable(to_make_room=True)
        self.require_no_disk(name, "trimmed", " (or trim it from where it is used)")
        unmapped = freed = 0
        with self.opened(name) as volume, _named(name, self._devices.active.thins()[name]):
            if not isinstance(volume, Volume):
                raise FilesystemError(f"it {_ONLY_READ}", errno=errno.EROFS)
            thin = self._devices.active.thins()[name]
            with _naming_a_full_pool(f"device '{name}' {_NO_ROOM_TO_TRIM}"):
                volume.sync()  # what that takes or gives is none of the trim's
            for offset in range(0, thin.size_bytes, _TRIM_STEP_BYTES):
                before = self._occupied(thin)
                volume.trim(offset, _TRIM_STEP_BYTES)
                after = self._occupied(thin)
                unmapped += before[0] - after[0]
                freed += before[1] - after[1]
                yield
        # To note damage may take blocks of a snapshot, by breaking sharing.
        return Trimmed(max(unmapped, 0), max(freed, 0))

    def _occupied(self, thin: ThinDevice) -> tuple[int, int]:
        """Bytes that a device maps, and that its pool uses."""
        pool = require_status(self._devices.pool)
        status = thin.status()
        if isinstance(status, UnreadableStatus):
            raise PoolModeError(f"thin {thin.thin_id} answers '{status.value}'; close the home and check it")
        return status.mapped_sectors * SECTOR_BYTES, pool.used_data_blocks * thin.block_bytes

    def require_writable(self, name: str) -> None:
        """Raises FilesystemError (EROFS) for an open volume of xfs."""
        if not isinstance(self._open[name].volume, Volume):
            raise FilesystemError(f"device '{name}' {_ONLY_READ}, 'mount --read-only' its files", errno=errno.EROFS)

    def require_no_disk(self, name: str, purpose: str, alternative: str = "") -> None:
        """Raises DeviceBusy for a device that is in use as a disk, since its user may have its files open too."""
        if self.is_disk(name):
            raise self._devices.uses.busy(name, purpose, alternative)

    def is_disk(self, name: str) -> bool:
        """Whether a device is in use, and not for its files."""
        return name in self._devices.active.thins() and not self.is_open(name)

    def is_open(self, name: str) -> bool:
        return name in self._open

    def names(self) -> list[str]:
        """The devices whose volumes are open, in order."""
        return sorted(self._open)

    def close_all(self) -> None:
        """Close every volume, also one in use, whatever fails; the first error is raised at the end."""
        with ExitStack() as last:
            for opened in self._open.values():
                last.enter_context(ending_with(opened.closing.close))
            self._open.clear()


@contextmanager
def _quiesced(volume: OpenVolume) -> Iterator[None]:
    volume.quiesce()
    yield


@contextmanager
def _naming_a_full_pool(what: str) -> Iterator[None]:
    """Say what a full pool stopped."""
    try:
        yield
    except (OutOfDataSpace, OutOfMetadataSpace) as error:
        raise type(error)(f"{what}: {error}") from error


@contextmanager
def _named(device: str, disk: BlockDevice, *, read_only: bool = True) -> Iterator[None]:
    """Say whose file system it is that an error is about."""
    try:
        yield
    except FilesystemError as error:
        message = f"device '{device}': {error.message}"
        if error.errno == errno.EINVAL and (held := without_files(disk)) is not None:
            message = f"device '{device}': {held}"
        elif error.errno == errno.EUCLEAN:
            remedy = _REPAIR_XFS if holds_xfs(disk) else _REPAIR
            message = f"{message.removesuffix('; run a check with repair')}; {remedy}"
            if not read_only and not isinstance(error, UnreadableRoot):
                message += ", 'mount --read-only' shows what can be read"
        raise FilesystemError(message, errno=error.errno) from error
