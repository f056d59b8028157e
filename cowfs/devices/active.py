"""Devices in use: counted activation, exclusive use, and holding one still for a snapshot."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Final, TypeAlias, TypeVar

import msgspec

from cowfs.devices.on_disk.records import DeviceFile
from cowfs.devices.on_disk.store import DeviceStore
from cowfs.devices.reports import DeviceUse, UseKind
from cowfs.devices.uses import DeviceUses, busy, require_idle
from cowfs.ending import ending_with
from cowfs.errors import DeviceBusy, MissingRequirement, NoSuchThin, ThinBusy, UsageError
from cowfs.forking import not_inherited
from cowfs.pool import NodePool, NodeThin, Pool, ThinDevice
from cowfs.units import SECTOR_BYTES

Quiescer: TypeAlias = Callable[[], AbstractContextManager[object]]
N = TypeVar("N")
_MAX_DM_NAME_BYTES: Final = 127


class _Active(msgspec.Struct):
    thin: ThinDevice
    count: int
    read_only: bool


class ActiveDevices:
    """What is active of one home, by device name. All users of a device share one disk and one mode.

    In a home that is open read-only, every device is active for reading.

    Args:
        uses: names a user in the error for a device in use.
        prefix: of a device's name as a target.

    Attributes:
        on_activation: called with the name and the disk of each device that becomes active.
        when_idle: called with the name of a device that its last user in this process has deactivated.
    """

    def __init__(self, pool: Pool, store: DeviceStore, uses: DeviceUses, prefix: str) -> None:
        self.pool = pool
        self._node_pool = pool if isinstance(pool, NodePool) else None
        self._store = store
        self._uses = uses
        self._prefix = prefix
        self._active: dict[str, _Active] = {}
        self._rewritten: set[str] = set()
        self.on_activation: Callable[[str, ThinDevice], None] | None = None
        self._quiescers: dict[str, list[Quiescer]] = {}
        self.when_idle: Callable[[str], object] = lambda _name: None
        not_inherited(self, f"the home {store.files.home}", ends=("close", "deactivate"))

    @property
    def has_nodes(self) -> bool:
        """Whether devices in use are nodes of the kernel."""
        return self._node_pool is not None

    def usable(self, name: str) -> DeviceFile:
        """The record of a device. Raises UnknownDevice; DeviceBusy: it is marked for deletion, or rewritten."""
        record = self._store.require(name)
        if record.deleted:
            raise DeviceBusy(f"device {name!r} (thin {record.device_id}) is marked for deletion")
        self.require_not_rewritten(name)
        return record

    def require_idle(self, name: str, purpose: str) -> None:
        """Raises DeviceBusy for a device that is active in this process."""
        if name in self._active:
            raise self._uses.busy(name, purpose)

    def require_unused(self, name: str, purpose: str) -> None:
        """Raises DeviceBusy for a device that is in use by this process, or by others through its node."""
        self.require_idle(name, purpose)
        require_idle(name, self.node_uses(name), purpose)
        if name in self.open_nodes():
            thin_id = self._store.require(name).device_id
            raise DeviceBusy(
                f"device {name!r} (thin {thin_id}) is in use through its node, so it cannot be {purpose}; "
                "end that first"
            )

    def require_not_rewritten(self, name: str) -> None:
        if name in self._rewritten:
            raise DeviceBusy(f"new content is being written to device {name!r}; try again when that is done")

    @contextmanager
    def rewriting(self, name: str) -> Iterator[None]:
        """For the length of a block, no user can activate the device."""
        self._rewritten.add(name)
        try:
            yield
        finally:
            self._rewritten.discard(name)

    def open_thin(self, name: str, record: DeviceFile, read_only: bool) -> ThinDevice:
        """Activate a thin for its caller alone, uncounted, under a name."""
        length_sectors = record.size // SECTOR_BYTES
        try:
            return self.pool.activate(self.target_name(name), record.device_id, length_sectors, read_only=read_only)
        except ThinBusy as error:
            if name in self.kept_nodes():
                raise busy(name, self.node_uses(name), "used otherwise") from error
            raise DeviceBusy(f"device {name!r} cannot be activated: {error}") from error
        except NoSuchThin as error:
            raise NoSuchThin(
                f"device {name!r} cannot be activated: its thin {record.device_id} is not in pool {self.pool.name}"
            ) from error

    def activate(self, name: str, *, read_only: bool = False) -> ThinDevice:
        """A device as a disk. Each call needs a `deactivate`; all users share one disk and one mode.

        Raises:
            UnknownDevice, NoSuchThin: no record, or no thin for it.
            DeviceBusy: it is active in the other mode, or marked for deletion.
        """
        return self.activate_as(name, self.usable(name), read_only=read_only or self._store.read_only)

    def activate_as(self, name: str, record: DeviceFile, *, read_only: bool) -> ThinDevice:
        """As `activate`, also for a device whose stored record says that it is not complete."""
        active = self._active.get(name)
        if active is None:
            active = self._active[name] = _Active(self.open_thin(name, record, read_only), 0, read_only)
            if self.on_activation is not None:
                self.on_activation(name, active.thin)
        elif active.read_only != read_only:
            mode = "read-only" if active.read_only else "for writing"
            raise DeviceBusy(f"device {name!r} (thin {record.device_id}) is active {mode}; deactivate it first")
        active.count += 1
        return active.thin

    @contextmanager
    def activated(self, name: str, kind: UseKind, *, read_only: bool = False) -> Iterator[ThinDevice]:
        """A device as a disk for the length of a block, which the ledger of uses shows as `kind`."""
        thin = self.activate(name, read_only=read_only)
        with ending_with(partial(self.deactivate, name)), self._uses.using(name, kind):
            yield thin

    def deactivate(self, name: str) -> None:
        """End one activation; the last one flushes the device, closes it, and deletes it where it is marked for that.

        Raises:
            UsageError: it is not active.
            ThinBusy: something else has its node open; it stays active, and may be deactivated again.
        """
        active = self._active.get(name)
        if active is None:
            raise UsageError(f"device {name!r} is not active, so it cannot be deactivated")
        if active.count > 1:
            active.count -= 1
            return
        try:
            _close(active)
        except ThinBusy:
            raise
        except BaseException:
            del self._active[name]
            raise
        del self._active[name]
        self.when_idle(name)

    def close(self) -> None:
        """Flush and close everything, whatever fails; the first error is raised at the end."""
        with ExitStack() as last:
            for active in self._active.values():
                last.callback(_close, active)
            self._active.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._active

    def thins(self) -> dict[str, ThinDevice]:
        return {name: active.thin for name, active in self._active.items()}

    # ------------------------------------------------------------------ nodes

    def open_node(self, name: str) -> int:
        """Activate a device for users of its node, such as a mount by the kernel, until the last of them ends.

        Returns:
            A descriptor of the node, the first user, which the caller closes.

        Raises:
            UnknownDevice, NoSuchThin, DeviceBusy: as `activate`.
            MissingRequirement: the backend has no nodes.
        """
        record = self.usable(name)
        if self._node_pool is None:
            raise MissingRequirement(
                f"device {name!r} has no block device node: its backend runs in this process, not in the kernel",
                remedy="cowfs --backend dmthin ...",
                errno=errno.EOPNOTSUPP,
            )
        self.require_idle(name, "mounted by the kernel")
        thin = self.open_thin(name, record, self._store.read_only)
        assert isinstance(thin, NodeThin)
        return thin.hand_over()

    def open_nodes(self) -> dict[str, list[int]]:
        """Devices that are in use through their nodes, by any process, with the numbers of these nodes."""
        return self._by_name(self._node_pool.open_nodes()) if self._node_pool is not None else {}

    def keep_node(self, name: str, *, read_only: bool = False) -> str:
        """Activate a device for any user of its node, until `end_kept`; returns the path of the node.

        Raises:
            UnknownDevice, NoSuchThin, DeviceBusy: as `activate`.
            MissingRequirement: the backend has no nodes.
        """
        record = self.usable(name)
        if self._node_pool is None:
            raise MissingRequirement(
                f"device {name!r} has no block device node, as its pool runs in a process; a disk image for any tool "
                f"is MNT/{name} after 'cowfs mount --raw {name} MNT', and 'losetup --find --show MNT/{name}' makes a "
                "node of that",
                errno=errno.EOPNOTSUPP,
            )
        self.require_idle(name, "activated")
        thin = self.open_thin(name, record, read_only or self._store.read_only)
        assert isinstance(thin, NodeThin)
        return thin.keep()

    def end_kept(self, name: str) -> None:
        """Deactivate a device that `keep_node` activated.

        Raises:
            UnknownDevice; UsageError: it is not active so.
            DeviceBusy: a process has its node open.
        """
        record = self._store.require(name)
        if name not in self.kept_nodes() or self._node_pool is None:
            raise UsageError(f"device {name!r} was not activated as a node, so it cannot be deactivated")
        try:
            self._node_pool.end_kept(record.device_id)
        except ThinBusy as error:
            raise DeviceBusy(f"device {name!r} cannot be deactivated: {error}; end that first") from error

    def kept_nodes(self) -> dict[str, str]:
        """Devices that are active for any user of their nodes, with the paths of these."""
        return self._by_name(self._node_pool.kept_nodes()) if self._node_pool is not None else {}

    def _by_name(self, nodes: Mapping[int, N]) -> dict[str, N]:
        if not nodes:
            return {}
        return {name: nodes[record.device_id] for name, record in self._store.items() if record.device_id in nodes}

    def node_uses(self, *names: str) -> list[DeviceUse]:
        """Of devices that are active so, the use that this is; of all of them when none is named."""
        return [
            DeviceUse(name, "node", path, None)
            for name, path in self.kept_nodes().items()
            if not names or name in names
        ]

    # ------------------------------------------------------------------ snapshots

    def add_quiescer(self, name: str, quiescer: Quiescer) -> Callable[[], None]:
        """Have `quiescer` bring a device to a consistent state around each snapshot of it.

        Its context is entered before the device is suspended and left after it is resumed; a file system view flushes
        in the one and lets its users go on in the other. It runs in the caller of `snapshot` and must not wait.

        Returns:
            A function that takes it out again.
        """
        hooks = self._quiescers.setdefault(name, [])
        hooks.append(quiescer)

        def remove() -> None:
            with suppress(ValueError):
                hooks.remove(quiescer)

        return remove

    def snapshot(self, name: str, origin_id: int, *thin_ids: int) -> None:
        """Make snapshots of `origin_id`, the thin of a device, which is quiesced for the moment.

        Raises NoSuchThin when that is not in the pool.
        """
        with ExitStack() as resumed:
            self._quiesce(name, resumed)
            for thin_id in thin_ids:
                self.pool.create_snap(thin_id, origin_id)

    def snapshot_nodes(self, origins: Mapping[int, int]) -> None:
        """Make snapshots of thins that are in use through their nodes, of one moment: the origin by the new id."""
        if origins:
            assert self._node_pool is not None
            self._node_pool.create_snaps(origins)

    @contextmanager
    def all_quiesced(self) -> Iterator[None]:
        """Quiesce every active device for the length of a block."""
        with ExitStack() as resumed:
            for name in list(self._active):
                self._quiesce(name, resumed)
            yield

    def _quiesce(self, name: str, resumed: ExitStack) -> None:
        active = self._active.get(name)
        if active is None:
            return
        if not active.read_only:
            active.thin.flush()  # most of the work, while its users still write
        for quiescer in list(self._quiescers.get(name, ())):
            resumed.enter_context(quiescer())
        active.thin.suspend()
        resumed.callback(active.thin.resume)

    def target_name(self, name: str) -> str:
        """A device's name as a target: moby's, where the kernel takes it."""
        full = f"{self._prefix}-{name}"
        if name != "pool" and len(full.encode(errors="surrogateescape")) <= _MAX_DM_NAME_BYTES:
            return full
        import hashlib

        digest = hashlib.sha256(name.encode(errors="surrogateescape"))
        return f"{self._prefix}-{digest.hexdigest()}"


def _close(active: _Active) -> None:
    try:
        if not active.read_only:
            active.thin.flush()
    finally:
        active.thin.close()
