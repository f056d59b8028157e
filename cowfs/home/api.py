"""The Python API of a home; `cowfs.open_home` makes one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.reports import DeviceReport, DeviceRow, HomeReport, UsageReport, UsageTotals
from cowfs.errors import HomeBusy
from cowfs.home.executor import Executor
from cowfs.home.requests.devices import (
    Create,
    Created,
    Inspect,
    ListDevices,
    Remove,
    Rename,
    Renamed,
    SendMessage,
    Status,
    Table,
    TargetLine,
    TargetStatus,
)
from cowfs.home.requests.request import documented_by
from cowfs.home.requests.space import (
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
from cowfs.home.session import Session, connect, metadata_of_session
from cowfs.home.spec import HomeSpec, Make
from cowfs.pool import ThinDevice

if TYPE_CHECKING:
    from cowfs.devices.opening import Progress
    from cowfs.home.layers import Layers
    from cowfs.thinmeta.findings import CheckReport
    from cowfs.thinmeta.xml import TextSink


class Home:
    """A home: named thin devices that are snapshots of one another.

    While a mount holds the home, everything but `device` goes through the process that serves the mount, and behaves
    the same. Not safe for use from several threads at once.

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

    def __init__(self, session: Session) -> None:
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
        self, policy: Literal["queue", "error"] | None = None, *, timeout_seconds: float | None = None
    ) -> NoSpaceSetting:
        return self._session.call(SetNoSpace(policy, timeout_seconds))

    @documented_by(ListDevices)
    def devices(self) -> list[DeviceRow]:
        return list(self._session.iterate(ListDevices()))

    def usage(self) -> UsageReport:
        """What every device occupies alone and shares, what no device owns, and what it comes to."""
        thins = list(self._session.iterate(Usage()))
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

    @property
    def layers(self) -> Layers:
        """The home as a storage driver of containers has it."""
        from cowfs.home.layers import Layers

        return Layers(self._session)

    @documented_by(SendMessage)
    def message(self, text: str) -> None:
        self._session.call(SendMessage(text))

    @documented_by(Table)
    def table(self) -> list[TargetLine]:
        return list(self._session.iterate(Table()))

    @documented_by(TargetStatus)
    def target_status(self) -> list[TargetLine]:
        return list(self._session.iterate(TargetStatus()))

    def check(self) -> CheckReport:
        """Recount the pool's metadata as it is committed now."""
        from cowfs.home.maintenance import check_metadata

        with metadata_of_session(self._session) as metadata:
            return check_metadata(metadata)

    def dump(self, out: TextSink) -> None:
        """Write the pool's metadata as thin_dump's XML."""
        from cowfs.home.maintenance import dump_metadata

        with metadata_of_session(self._session) as metadata:
            dump_metadata(metadata, out)

    def delta(self, left: str, right: str, out: TextSink) -> None:
        """Write what differs between the mappings of two devices, as thin_delta's XML."""
        from cowfs.home.maintenance import delta_metadata

        left_id, right_id = self.inspect(left).id, self.inspect(right).id
        with metadata_of_session(self._session) as metadata:
            delta_metadata(metadata, left_id, right_id, out)

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
        devices = self._local_devices(f"opening the device '{name}'")
        disk = devices.activate(name, read_only=read_only or (name == BASE and not write_base))
        try:
            with devices.uses.using(name, "disk"):
                yield disk
        finally:
            devices.deactivate(name)

    def _local_devices(self, purpose: str) -> DeviceSet:
        if not isinstance(self._session, Executor):
            raise HomeBusy(
                f"{purpose} needs the home {self.path} in this process, and process {self.holder_pid} holds it; "
                "unmount it first, or use the mount",
                holder_pid=self.holder_pid or 0,
            )
        return self._session.home.devices

    def close(self) -> None:
        """Release the home. A second close does nothing."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_home(
    path: str | os.PathLike[str],
    *,
    backend: str = "emulated",
    create: bool = False,
    read_only: bool = False,
    durable: bool = True,
    storage_options: Sequence[str] = (),
    options: HomeOptions | None = None,
    progress: Progress | None = None,
) -> Home:
    """Open a home, or reach the process that holds it. The result is a context manager.

    Args:
        path: the home's directory.
        backend: who runs the pool, a name of the entry-point group `cowfs.backends`.
        create: make the home when the directory is new or empty, as `storage_options` and `options` say.
        read_only: change nothing, not even what a crash left.
        durable: False gives up flushes, for homes that live no longer than a test.
        storage_options: of the layer driver, `dm.KEY=VALUE`; they also make a home grow, and count before `options`.
            The process that holds a home goes by its own.
        progress: called with (what is done next, steps done, steps in all) while a home is made.

    Raises:
        NotAHome, HomeVersionError: there is no home, or not one of this program's.
        HomeBusy: another process holds it and does not answer.
        UsageError: an unknown backend, or sizes that cannot be.
        MetadataCorrupt, HomeError: its files are damaged.
    """
    spec = HomeSpec(
        Path(os.path.abspath(path)),
        backend,
        read_only=read_only,
        durable=durable,
        storage_options=tuple(storage_options),
        make=Make.WHERE_ABSENT if create else Make.NEVER,
        options=options,
        progress=progress,
    )
    return Home(connect(spec))
