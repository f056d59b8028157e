"""The Python API of a home; `cowfs.open_home` makes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.reports import ClonedHome, DeviceReport, DeviceRow, HomeReport, IoReport, UsageReport, UsageTotals
from cowfs.ending import Closing
from cowfs.errors import UsageError
from cowfs.home.opened.spec import HomeSpec, Make
from cowfs.home.own_session import OwnSession
from cowfs.home.requests.clock import AdvanceClock
from cowfs.home.requests.clone import CloneHome
from cowfs.home.requests.counters import Io, Metrics
from cowfs.home.requests.devices import (
    Activate,
    Activated,
    Create,
    Created,
    CreateMany,
    Deactivate,
    Inspect,
    ListDevices,
    Remove,
    Rename,
    Renamed,
    Rollback,
    RolledBack,
    SendMessage,
    Status,
    Table,
    TargetLine,
    TargetStatus,
)
from cowfs.home.requests.request import documented_by
from cowfs.home.requests.space import (
    NoSpaceChoice,
    NoSpaceSetting,
    Resize,
    Resized,
    ResizedPool,
    ResizePool,
    SetNoSpace,
    Trim,
    TrimmedDevice,
    Usage,
)
from cowfs.mounts.mountinfo import require_outside_mounts
from cowfs.pool import ThinDevice

if TYPE_CHECKING:
    from cowfs.copying.sinks import Copied
    from cowfs.devices.opening import Progress
    from cowfs.disk_images.formats import Format
    from cowfs.faults.api import Faults
    from cowfs.faults.plan import Rule
    from cowfs.faults.rules import FaultReport
    from cowfs.home.api.comparing import BlockRange, FileChange, FileDifference
    from cowfs.home.api.files import FileInfo
    from cowfs.home.api.layers import Layers
    from cowfs.home.api.recordings import Recordings
    from cowfs.home.api.trace_files import TraceRecording
    from cowfs.home.requests.disks import Exported, Imported
    from cowfs.home.requests.files import WantedFile
    from cowfs.home.requests.images import Chain
    from cowfs.home.requests.power import PowerCut
    from cowfs.steps import Progress as BytesProgress
    from cowfs.thinmeta.findings import CheckReport
    from cowfs.thinmeta.xml import TextSink


class Home(Closing):
    """A home: named thin devices that are snapshots of one another.

    While a mount holds the home, everything but `device` is done by the process that serves the mount, and behaves
    the same. Several threads may use one `Home`: one call runs at a time. While a disk is open (`device`), calls of
    other threads than the one that opened it raise HomeBusy; the disk itself is for that thread alone.

    Example:
        >>> import cowfs, tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> options = cowfs.HomeOptions(data_size_bytes=1 << 30, metadata_size_bytes=4 << 20, base_size_bytes=64 << 20)
        >>> with cowfs.open_home(directory.name + "/home", create=True, options=options) as home:
        ...     _ = home.create("web")
        ...     with home.device("web") as disk:
        ...         disk.pwrite(1 << 20, b"before")
        ...     _ = home.snapshot("web", "web-monday")
        ...     with home.device("web") as disk:
        ...         disk.pwrite(1 << 20, b"after.")
        ...     with home.device("web-monday", read_only=True) as disk:
        ...         print(disk.pread(1 << 20, 6))
        ...     for row in home.devices():
        ...         print(row.name, row.parent)
        b'before'
        base None
        web base
        web-monday web
        >>> directory.cleanup()
    """

    def __init__(self, session: OwnSession) -> None:
        self._session = session

    @property
    def path(self) -> Path:
        return self._session.path

    @property
    def holder_pid(self) -> int | None:
        """The process that holds the home when it is not this one."""
        return self._session.holder_pid

    @documented_by(Create)
    def create(self, name: str, *, parent: str | None = None, size_bytes: int | None = None) -> Created:
        return self._session.call(Create(name, parent, size_bytes))

    def snapshot(self, origin: str, name: str) -> Created:
        """`create(name, parent=origin)`."""
        return self._session.call(Create(name, origin))

    @documented_by(CreateMany)
    def create_many(
        self, names: Sequence[str], *, parent: str | None = None, size_bytes: int | None = None
    ) -> list[Created]:
        return self._session.call(CreateMany(list(names), parent, size_bytes))

    @documented_by(Rollback)
    def rollback(self, name: str, snapshot: str, *, keep: str | None = None, force: bool = False) -> RolledBack:
        return self._session.call(Rollback(name, snapshot, keep, force))

    @documented_by(Rename)
    def rename(self, name: str, new_name: str) -> Renamed:
        return self._session.call(Rename(name, new_name))

    @documented_by(Remove)
    def remove(self, name: str, *, deferred: bool = False) -> bool:
        return self._session.call(Remove(name, deferred))

    @documented_by(Trim)
    def trim(self, name: str) -> TrimmedDevice:
        return self._session.call(Trim(name))

    @documented_by(Resize)
    def resize(self, name: str, size_bytes: int) -> Resized:
        return self._session.call(Resize(name, size_bytes))

    @documented_by(ResizePool)
    def resize_pool(self, *, data_size_bytes: int | None = None, metadata_size_bytes: int | None = None) -> ResizedPool:
        return self._session.call(ResizePool(data_size_bytes, metadata_size_bytes))

    @documented_by(SetNoSpace)
    def set_no_space(
        self, policy: NoSpaceChoice | None = None, *, timeout_seconds: float | None = None
    ) -> NoSpaceSetting:
        return self._session.call(SetNoSpace(policy, timeout_seconds))

    @documented_by(ListDevices)
    def devices(self) -> list[DeviceRow]:
        return self._session.read_all(ListDevices())

    def usage(self) -> UsageReport:
        """What every device occupies alone and shares, what no device owns, and what it comes to."""
        thins = self._session.read_all(Usage())
        report = self.status()
        mapped = sum(thin.mapped_bytes for thin in thins)
        exclusive = sum(thin.exclusive_bytes for thin in thins)
        totals = UsageTotals(
            mapped_bytes=mapped,
            exclusive_bytes=exclusive,
            shared_bytes=max(0, report.data_used_bytes - exclusive),
            saved_bytes=max(0, mapped - report.data_used_bytes),
            data_used_bytes=report.data_used_bytes,
            data_total_bytes=report.data_total_bytes,
            metadata_used_bytes=report.metadata_used_bytes,
            metadata_total_bytes=report.metadata_total_bytes,
        )
        return UsageReport(thins, totals)

    @documented_by(Inspect)
    def inspect(self, name: str) -> DeviceReport:
        return self._session.call(Inspect(name))

    @documented_by(Status)
    def status(self) -> HomeReport:
        return self._session.call(Status())

    @documented_by(Activate)
    def activate(self, name: str, *, read_only: bool = False) -> Activated:
        return self._session.call(Activate(name, read_only))

    @documented_by(Deactivate)
    def deactivate(self, name: str) -> None:
        self._session.call(Deactivate(name))

    @documented_by(Io)
    def io(self) -> IoReport:
        return self._session.call(Io())

    @property
    def faults(self) -> Faults:
        """Faults on demand, for tests: of what a mount of this home serves, and of the disks that are open here.

        Example:
            with home.mount("web") as tree, home.faults.fail("write", path="*.wal", errno="ENOSPC", after=3) as fault:
                run_program(tree)
            assert fault.hits
        """
        from cowfs.faults.api import Faults

        return Faults(self)

    def add_faults(self, rules: Sequence[Rule]) -> list[FaultReport]:
        """Put rules of faults in force, all of them or none; the rules that were added, with their names.

        Raises UsageError: a rule is wrong, has a name that is taken, or cannot be met in this home.
        """
        from cowfs.home.requests.faults import AddFaults

        return self._session.call(AddFaults(list(rules))).faults

    def list_faults(self) -> list[FaultReport]:
        """The rules of faults in force, and how often each was met."""
        from cowfs.home.requests.faults import ListFaults

        return self._session.call(ListFaults()).faults

    def clear_faults(self, names: Sequence[str] = ()) -> list[FaultReport]:
        """Take rules of faults out of force; the rules that were cleared, with what they had counted.

        Args:
            names: of rules; all of them when empty.

        Raises UsageError: there is no such rule.
        """
        from cowfs.home.requests.faults import ClearFaults

        return self._session.call(ClearFaults(tuple(names))).faults

    @documented_by(Metrics)
    def metrics(self) -> str:
        return self._session.call(Metrics())

    def watch_unsynced(self, name: str) -> None:
        """Keep what the writes to a device replace until it is flushed, from now on: for `power_cut`.

        That costs one read for each write, and ends with the process that holds the home. What programs have open in
        its mount stays open. It is about files: a disk (`mount --raw`) has none.

        Raises:
            UnknownDevice.
            DeviceBusy: it is in use by more than its mount, or a file without a name is open in it.
        """
        from cowfs.home.requests.power import WatchUnsynced

        self._session.call(WatchUnsynced(name))

    def power_cut(self, name: str, *, seed: int | None = None) -> PowerCut:
        """Cut the power of a device and restore it: what programs wrote and have not synced is lost.

        What is open in it is detached, and gets ESTALE. The file system is as after any crash: its journal is replayed
        when it is used next.

        Args:
            name: a device that `watch_unsynced` was called for before.
            seed: chooses what is lost: some of what has been on its way to the disk since its last flush, torn at
                sectors of 512 bytes. None: all of it is.

        Raises:
            UnknownDevice; UsageError: it is not watched, or the seed is not a whole number.
            DeviceBusy: it is mounted by the kernel, as a layer, or open as a disk.
        """
        from cowfs.home.requests.power import PowerOff, PowerOn

        if not isinstance(seed, int | None):
            raise UsageError(f"power_cut('{name}', seed={seed!r}): the seed must be a whole number, or None")

        self._session.call(PowerOff(name))
        return self._session.call(PowerOn(name, seed))

    @documented_by(AdvanceClock)
    def advance_clock(self, seconds: float) -> float:
        return self._session.call(AdvanceClock(seconds))

    # ------------------------------------------------------------------ files, without a mount

    def list_files(self, device: str, path: str = "", *, follow: bool = True) -> Iterator[FileInfo]:
        """The files in a directory of a device by name, or the one file that `path` leads to.

        Paths are those within the device, or the layer; neither `..` nor a symbolic link leads out of it.

        Args:
            follow: a symbolic link that the path ends in.

        Raises:
            UnknownDevice, DeviceBusy; CopyError: the path leads to nothing.
            FilesystemError: the directory or something in it is damaged; what could be read of it came before.
        """
        from cowfs.home.api.files import FileInfo
        from cowfs.home.requests.files import ListFiles

        return map(FileInfo.of, self._session.iterate(ListFiles(device, os.fsencode(path), follow)))

    def read_file(self, device: str, path: str, out: Callable[[bytes], object]) -> int:
        """Have `out` called with the content of a regular file, piece by piece; its length in bytes.

        A symbolic link is followed. Raises as `open_file`.
        """
        from cowfs.home.requests.files import ReadFile

        return self._session.receive(ReadFile(device, os.fsencode(path)), out)

    def read_files(self, device: str, files: Sequence[WantedFile], out: Callable[[bytes], object]) -> None:
        """Have `out` called with the contents of regular files, one after the other, each exactly as long as wanted.

        Raises:
            UnknownDevice, DeviceBusy; CopyError: a path leads to nothing, to no regular file, or to one of another
                length.
        """
        from cowfs.home.api import files as home_files

        home_files.read_files(self._session, device, files, out)

    def open_file(self, device: str, path: str) -> IO[bytes]:
        """The content of a regular file as it is now, in a file without a name that the caller closes.

        Raises:
            UnknownDevice, DeviceBusy; CopyError: the path leads to nothing, or no regular file.
        """
        import tempfile

        with ExitStack() as undo:
            copy = undo.enter_context(tempfile.TemporaryFile())
            self.read_file(device, path, copy.write)
            copy.seek(0)
            undo.pop_all()
        return copy

    def copy_in(
        self,
        source: str | os.PathLike[str],
        device: str,
        path: str = "",
        *,
        write_base: bool = False,
        recursive: bool = True,
        progress: BytesProgress | None = None,
    ) -> Copied:
        """Copy a file of the host, or a directory and all below it, into a device, as `cp -a` does.

        Args:
            path: an existing directory, below which the copy is put, or what the copy is to be. Of a source that ends
                in `/.` the content alone is copied.
            write_base: allow the base device.
            recursive: allow a directory.
            progress: called with (bytes done, bytes in all).

        Returns:
            What was copied, and what was not.

        Raises:
            UsageError, UnknownDevice, DeviceBusy, HomeError.
            CopyError, PoolError: nothing more can be written; what came before it is copied, and committed.
        """
        from cowfs.home.api import files
        from cowfs.home.requests.files import CopyIn

        request = CopyIn(device, os.fsencode(path), write_base=write_base)
        return files.copy_in(self._session, source, request, recursive=recursive, progress=progress)

    def copy_out(
        self,
        device: str,
        path: str,
        target: str | os.PathLike[str],
        *,
        recursive: bool = True,
        progress: BytesProgress | None = None,
    ) -> Copied:
        """Copy a file of a device, or a directory and all below it, to the host, as `cp -a` does.

        Owners and special files are made as far as this process may. Below `target` no symbolic link is followed.

        Args:
            target: an existing directory, below which the copy is put, or what the copy is to be. Of a path that ends
                in `/.`, and of the root, the content alone is copied.
            progress: called with (bytes done, None).

        Returns:
            What was copied, and what was not.

        Raises:
            UnknownDevice, DeviceBusy; CopyError: the path leads to nothing, or nothing more can be written.
        """
        from cowfs.home.api import files
        from cowfs.home.requests.files import CopyOut

        request = CopyOut(device, os.fsencode(path), recursive)
        return files.copy_out(self._session, request, target, progress=progress)

    def copy_within(
        self,
        device: str,
        path: str,
        target_device: str,
        target_path: str = "",
        *,
        write_base: bool = False,
        recursive: bool = True,
    ) -> Copied:
        """Copy a file, or a directory and all below it, from one device to another, or elsewhere in the same one.

        Args, result and errors are those of `copy_in` and `copy_out`. CopyError also for a directory into itself.
        """
        from cowfs.home.requests.files import CopyWithin

        paths = os.fsencode(path), os.fsencode(target_path)
        request = CopyWithin(device, paths[0], target_device, paths[1], recursive, write_base)
        return self._session.call(request)

    # ------------------------------------------------------------------ differences

    def changes(self, device: str, other: str | None = None) -> Iterator[FileChange]:
        """The paths that differ in a device, or a layer, from another one, sorted.

        It takes time in proportion to what differs where the two have a common origin and the same size, else to all
        files.

        Args:
            other: what it is a snapshot of when None.

        Raises:
            UnknownDevice, DeviceBusy, FilesystemError.
            UsageError: what it is a snapshot of is not known; one of the two is a layer and the other is not.
        """
        from cowfs.home.api.comparing import FileChange, parent_of
        from cowfs.home.requests.comparing import Changes

        request = Changes(device, other or parent_of(self._session, device))
        return map(FileChange.of, self._session.iterate(request))

    def diff(self, old: str, new: str, out: Callable[[FileDifference], object], *, path: str = "/") -> None:
        """Have `out` called with each path that differs from `old` in `new`, with the lines of `diff -u` for texts.

        Args:
            path: only this one, and those below it.

        Raises: as `changes`.
        """
        from cowfs.home.api import comparing

        comparing.diff(self._session, old, new, path, out)

    def block_ranges(
        self, device: str, base: str | None = None, *, starting_offset_bytes: int = 0, max_results: int = 0
    ) -> Iterator[BlockRange]:
        """The ranges of a device that differ from `base`, or, without one, that are mapped: in whole blocks, ascending.

        They are those of the metadata as it is committed now: compare snapshots, which nothing changes. As CSI's
        SnapshotMetadata has them, with `hole` for what is no longer mapped.

        Args:
            starting_offset_bytes: leave out what is before the block that this is in: to go on after a range, give its
                end.
            max_results: end after so many ranges; 0 for all.

        Raises:
            UnknownDevice; UsageError: a negative number.
        """
        from cowfs.home.api import comparing

        with self._session.current():
            yield from comparing.block_ranges(
                self._session, device, base, starting_offset_bytes=starting_offset_bytes, max_results=max_results
            )

    @property
    def layers(self) -> Layers:
        """The home as a storage driver of containers has it."""
        from cowfs.home.api.layers import Layers

        return Layers(self._session)

    @property
    def recordings(self) -> Recordings:
        """What happens to devices, recorded, and devices as a crash would have left them."""
        from cowfs.home.api.recordings import Recordings

        return Recordings(self._session)

    def trace(self, device: str, path: str, *, force: bool = False) -> AbstractContextManager[TraceRecording]:
        """Record the requests to a device in use in a new file while a `with` block runs.

        It can be read by `cowfs.traces.formats.open_trace`, whatever happens while it is recorded.

        Args:
            force: write over a regular file.

        Raises:
            UnknownDevice; DeviceBusy: it is traced already.
            UsageError: the device is not in use, or by the kernel; the file exists.
            OSError: the file cannot be written.
        """
        from cowfs.home.api.trace_files import recorded_trace

        return recorded_trace(self._session, device, path, force=force)

    @documented_by(SendMessage)
    def message(self, text: str) -> None:
        self._session.call(SendMessage(text))

    @documented_by(Table)
    def table(self) -> list[TargetLine]:
        return self._session.read_all(Table())

    @documented_by(TargetStatus)
    def target_status(self) -> list[TargetLine]:
        return self._session.read_all(TargetStatus())

    def import_image(
        self,
        source: str | os.PathLike[str],
        name: str,
        *,
        format: Format | None = None,  # noqa: A002
        size_bytes: int | None = None,
        follow_backing: bool = False,
        progress: BytesProgress | None = None,
    ) -> Imported:
        """Make a device of a disk image, a tar archive or a directory, all of it or nothing. Zeros are not mapped.

        Args:
            source: a raw disk, qcow2, vmdk, vdi or vhdx with any content; a tar archive or a directory, of whose files
                an ext4 is made.
            format: found by the first bytes when None.
            size_bytes: for archives and directories; that of the base device when None.
            follow_backing: read the other files that an image refers to, too.
            progress: called with (bytes done, bytes in all).

        Raises:
            DeviceExists, OutOfDataSpace, OutOfMetadataSpace.
            UsageError: the image is damaged or encrypted, or refers to other files.
            ArchiveError, CopyError: a file cannot be brought in.
            MissingRequirement: qemu-img is needed, and not there.
            CowfsError: the source cannot be read.
        """
        from cowfs.home.api.images import import_image

        return import_image(
            self._session,
            source,
            name,
            format=format,
            size_bytes=size_bytes,
            follow_backing=follow_backing,
            progress=progress,
        )

    def import_stream(
        self,
        stream: IO[bytes],
        name: str,
        *,
        format: Literal["raw", "tar"],  # noqa: A002
        size_bytes: int | None = None,
    ) -> Imported:
        """Make a device of what a stream holds up to its end, all of it or nothing: standard input, a pipe, a socket.

        What is no regular file is copied into an unnamed file of the home first.

        Args:
            stream: read from where it is.
            size_bytes: for archives; that of the base device when None.

        Raises:
            As `import_image`; HomeError: the copy cannot be kept.
        """
        from cowfs.home.api.images import import_stream

        return import_stream(self._session, stream, name, format=format, size_bytes=size_bytes)

    def export_image(
        self,
        name: str,
        target: str | os.PathLike[str],
        *,
        format: Format | None = None,  # noqa: A002
        force: bool = False,
        progress: BytesProgress | None = None,
    ) -> Exported:
        """Write a device to a new file, as it is now: a raw disk with holes, a qcow2 image, or a tar archive.

        Args:
            format: by the end of the name when None: `.qcow2`, `.tar`, else raw.
            force: replace an existing regular file.
            progress: called with (bytes done, bytes in all).

        Raises:
            UnknownDevice; UsageError: the file exists; FilesystemError: the device has no files that can be read.
            CowfsError: the file cannot be written; nothing is left.
        """
        from cowfs.home.api.images import export_image

        return export_image(self._session, name, target, format=format, force=force, progress=progress)

    def export_archive(self, name: str, out: Callable[[bytes], object], *, sparse: bool = True) -> Exported:
        """Have `out` called with the files of a device as a tar archive, piece by piece.

        Args:
            sparse: files with holes as sparse entries, which Docker's layer store does not read.

        Raises:
            UnknownDevice, DeviceBusy; FilesystemError: the device has no files that can be read.
        """
        from cowfs.home.requests.images import ExportArchive

        return self._session.receive(ExportArchive(name, sparse), out)

    def export_chain(
        self, name: str, target: str | os.PathLike[str], *, progress: BytesProgress | None = None
    ) -> Chain:
        """Write a device and all its descendants to a new directory, all of one moment, each only by its own blocks.

        Args:
            progress: called with (bytes done, None).

        Raises:
            UnknownDevice; UsageError: the directory exists; CowfsError: it cannot be written, and nothing is left.
        """
        from cowfs.home.api.chains import export_chain

        return export_chain(self._session, name, target, progress=progress)

    def import_chain(self, source: str | os.PathLike[str], *, progress: BytesProgress | None = None) -> list[Imported]:
        """Make the devices that `export_chain` wrote, under their names; they share what they shared. All or none.

        Args:
            progress: called with (bytes done, bytes in all).

        Raises:
            DeviceExists, OutOfDataSpace, OutOfMetadataSpace; UsageError: the chain is damaged.
            CowfsError: there is none.
        """
        from cowfs.home.api.chains import import_chain

        return import_chain(self._session, source, progress=progress)

    @documented_by(CloneHome)
    def clone(self, target: str | os.PathLike[str]) -> ClonedHome:
        path = os.path.abspath(target)
        parent = os.path.realpath(os.path.dirname(path))
        require_outside_mounts(parent, self.path)
        return self._session.call(CloneHome(os.path.join(parent, os.path.basename(path))))

    def check(self) -> CheckReport:
        """Recount the pool's metadata as it is committed now."""
        from cowfs.thinmeta.check import check

        with self._session.metadata() as metadata:
            return check(metadata)

    def dump(self, out: TextSink) -> None:
        """Write the pool's metadata as thin_dump's XML."""
        from cowfs.thinmeta.xml import dump

        with self._session.metadata() as metadata:
            dump(metadata, out)

    def delta(self, left: str, right: str, out: TextSink) -> None:
        """Write what differs between the mappings of two devices, as thin_delta's XML."""
        from cowfs.thinmeta.delta import delta

        left_id, right_id = self.inspect(left).id, self.inspect(right).id
        with self._session.metadata() as metadata:
            delta(metadata, left_id, right_id, out)

    @contextmanager
    def device(self, name: str, *, read_only: bool = False, write_base: bool = False) -> Iterator[ThinDevice]:
        """A device as a disk, for the length of a `with` block; flushed at its end.

        Args:
            write_base: allow writing to the base device, which is read-only otherwise: every later device begins as a
                copy of it.

        Raises:
            UnknownDevice, DeviceBusy.
            HomeBusy: another process holds the home, and its disks are open there.
        """
        with self._session.disk(f"opening the device '{name}'") as opened:
            is_read_only = read_only or (name == BASE and not write_base)
            with opened.devices.active.activated(name, "disk", read_only=is_read_only) as disk:
                yield disk

    def mount(
        self,
        name: str | None = None,
        *,
        target: str | os.PathLike[str] | None = None,
        raw: bool = False,
        read_only: bool = False,
        repair: bool = False,
        write_base: bool = False,
        writeback: bool = False,
        faults: str | os.PathLike[str] | None = None,
    ) -> AbstractContextManager[Path]:
        """A mount for the length of a `with` block: the path of its root.

        A process beside this one serves it. The `Home` works through that process meanwhile, and afterwards as before.
        At the end of the block, or when this process ends in whatever way, everything that was written is brought into
        the home; files that are still open are detached, and the mount is ended.

        Args:
            name: a device, whose files are shown; every device when None, each as the directory of its name.
            target: an empty directory; a new one, which is removed at the end, when None.
            raw: show the device as the file `name`, a disk image.
            read_only: mount for reading only, as the base device is without `write_base`.
            repair: let e2fsck repair a damaged file system before, even where that loses something.
            writeback: let the kernel gather what is written, see `cowfs mount --writeback`.
            faults: a plan of faults, a file of TOML, in force from the beginning; others come by `faults`.

        Raises:
            UsageError: the plan of faults.
            UnknownDevice, FilesystemError: the device cannot be mounted.
            DeviceBusy: a disk or a layer of the home is in use here.
            HomeBusy: another process serves a mount of the home.
            MountError, MissingRequirement: the mount point or this machine does not allow it; the server failed.

        Example:
            with home.mount() as tree:
                (tree / "web" / "index.html").write_text("hello")
                home.snapshot("web", "web-monday")
        """
        from cowfs.home.serving.mounting import MountRequest
        from cowfs.home.serving.own_mount import mounted_by_child

        if name is None and (raw or repair):
            raise UsageError(f"{'raw' if raw else 'repair'} is about one device; name it: home.mount(name, ...)")
        if writeback and (raw or read_only):
            raise UsageError("writeback is for files that are written; leave it out, or raw and read_only")
        draft = MountRequest(
            self.path,
            backend="",
            device=name,
            target="",
            raw=raw,
            read_only=read_only or (name == BASE and not write_base),
            repair=repair,
            write_base=write_base,
            writeback=writeback,
            is_private=target is None,
            faults="" if faults is None else os.fspath(faults),
        )
        return mounted_by_child(self._session, draft, target)

    def close(self) -> None:
        """Release the home. A second close does nothing."""
        self._session.close()


def open_home(
    path: str | os.PathLike[str],
    *,
    backend: str = "emulated",
    create: bool = False,
    read_only: bool = False,
    untouched: bool = False,
    durable: bool = True,
    storage_options: Sequence[str] = (),
    virtual_clock: bool = False,
    options: HomeOptions | None = None,
    progress: Progress | None = None,
) -> Home:
    """Open a home, or reach the process that holds it. The result is a context manager.

    Args:
        path: the home's directory.
        backend: who runs the pool, a name of the entry-point group `cowfs.backends`.
        create: make the home when the directory is new or empty, as `storage_options` and `options` say.
        read_only: change nothing, not even what a crash left.
        untouched: leave no trace either, not even the lock's file, as in a home that another program made; with
            `read_only`.
        durable: False gives up flushes, for homes that live no longer than a test.
        storage_options: of the layer driver, `dm.KEY=VALUE`; they also make a home grow, and count before `options`.
            The process that holds a home keeps its own.
        virtual_clock: for tests: time stands still for the home, but for `Home.advance_clock`. The process of a mount
            that this one makes has such a clock, too.
        progress: called with (what is done next, steps done, steps in all) while a home is made.

    Raises:
        NotAHome, HomeVersionError: there is no home, or not one of this program's.
        HomeBusy: another process holds it and does not answer.
        UsageError: an unknown backend, or sizes that cannot be.
        MetadataCorrupt, HomeError: its files are damaged.
    """
    if isinstance(storage_options, str | Mapping):
        raise UsageError(
            f"storage_options is a {type(storage_options).__name__}; it must be a list of 'KEY=VALUE', such as "
            "['dm.basesize=20G']"
        )
    spec = HomeSpec(
        Path(os.path.abspath(path)),
        backend,
        read_only=read_only,
        untouched=untouched,
        durable=durable,
        storage_options=tuple(storage_options),
        virtual_clock=virtual_clock,
        make=Make.WHERE_ABSENT if create else Make.NEVER,
        options=options,
        progress=progress,
    )
    return Home(OwnSession(spec))
