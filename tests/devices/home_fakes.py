"""A pool of dicts, an `os` that dies or fails at a chosen call, and a file system of one UUID.

`Steps` is the thread through all three: every call that changes something outside counts as one step. The process
"dies" by an exception that nothing catches, after which every further step dies too, as no step happens after a kill.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from cowfs.blockdev import BlockDevice, MemoryDevice
from cowfs.devices import opening
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk.options import HomeOptions
from cowfs.devices.on_disk.records import Identity
from cowfs.errors import FilesystemError, InvalidRequest, NoSuchThin, PoolError, PoolIoError, ThinBusy, ThinExists
from cowfs.pool import (
    Capability,
    DiscardMode,
    NoSpacePolicy,
    PoolMode,
    PoolStatus,
    PoolTable,
    ProbeResult,
    ThinStatus,
    ThinTable,
    UnreadableStatus,
)
from cowfs.thinmeta.format import SpaceMapRoot, Superblock

MIB = 1 << 20
SMALL = HomeOptions(
    data_size_bytes=4 * MIB, metadata_size_bytes=2 * MIB, base_size_bytes=MIB, min_free_percent=0, low_water_blocks=0
)
ROOMY = msgspec.structs.replace(SMALL, data_size_bytes=1 << 30, base_size_bytes=16 * MIB, durable=False)
UUIDS = ["11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-aaaaaaaaaaaa"]
PAGE = 4096


class Killed(BaseException):
    """The process died here."""


class Steps:
    """Counts steps; dies at number `die_at` (from 0). `log` has their labels."""

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.log: list[str] = []
        self.is_dead = False

    def step(self, label: str) -> None:
        if self.is_dead:
            raise Killed
        if len(self.log) == self.die_at:
            self.is_dead = True
            raise Killed(label)
        self.log.append(label)


class DyingOs:
    """`os` for HomeFiles. A write that is killed writes its first half.

    With `power_cut`, what no fsync had made durable is undone when `lose_power` is called: names changed in a directory
    that was not synced since, and what was added to files that were not.
    """

    def __init__(self, steps: Steps, *, power_cut: bool = False) -> None:
        self._steps = steps
        self._power_cut = power_cut
        self._undo: dict[str, list[Callable[[], None]]] = {}
        self._unsynced: dict[int, tuple[int, int]] = {}  # inode -> a descriptor, the size that is durable

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._steps.step(f"open {Path(path).name}")
        is_new = not os.path.lexists(path)
        fd = os.open(path, flags, mode)
        if is_new:
            self._note(os.path.dirname(path), lambda: os.unlink(path))
        return fd

    def write(self, fd: int, data: bytes) -> int:
        if self._power_cut:
            found = os.fstat(fd)
            if found.st_ino not in self._unsynced:
                self._unsynced[found.st_ino] = os.dup(fd), found.st_size
        try:
            self._steps.step("write")
        except Killed:
            if not self._steps.log or self._steps.log[-1] != "torn":
                os.write(fd, data[: len(data) // 2])
                self._steps.log.append("torn")
            raise
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        self._steps.step("fsync")
        self._undo.pop(os.readlink(f"/proc/self/fd/{fd}"), None)
        unsynced = self._unsynced.pop(os.fstat(fd).st_ino, None)
        if unsynced is not None:
            os.close(unsynced[0])

    def ftruncate(self, fd: int, length: int) -> None:
        self._steps.step("ftruncate")
        os.ftruncate(fd, length)

    def rename(self, src: str, dst: str) -> None:
        self._steps.step(f"rename {Path(dst).name}")
        before = _content(dst)
        os.rename(src, dst)

        def undo() -> None:
            os.rename(dst, src)
            _restore(dst, before)

        self._note(os.path.dirname(dst), undo)

    def unlink(self, path: str) -> None:
        self._steps.step(f"unlink {Path(path).name}")
        before = _content(path)
        os.unlink(path)
        self._note(os.path.dirname(path), lambda: _restore(path, before))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._steps.step(f"mkdir {Path(path).name}")
        os.mkdir(path, mode)
        self._note(os.path.dirname(path), lambda: shutil.rmtree(path))

    def _note(self, directory: str, undo: Callable[[], None]) -> None:
        if self._power_cut:
            self._undo.setdefault(directory, []).append(undo)

    def lose_power(self) -> None:
        for fd, size_bytes in self._unsynced.values():
            os.ftruncate(fd, size_bytes)
            os.close(fd)
        self._unsynced.clear()
        for undos in self._undo.values():
            for undo in reversed(undos):
                undo()
        self._undo.clear()


def _content(path: str) -> bytes | None:
    return Path(path).read_bytes() if os.path.isfile(path) else None


def _restore(path: str, content: bytes | None) -> None:
    if content is not None:
        Path(path).write_bytes(content)


class FailingOs(DyingOs):
    """Raises `error` once, at the step whose label starts with `label`, after `skip` such steps."""

    def __init__(self, label: str, error: int, *, skip: int = 0) -> None:
        super().__init__(Steps())
        self._label, self._error, self._left = label, error, skip
        self._steps.step = self._fail_or_pass  # type: ignore[method-assign]

    def mend(self) -> None:
        """Fail no more."""
        self._left = -1

    def _fail_or_pass(self, label: str) -> None:
        if label.startswith(self._label):
            self._left -= 1
            if self._left == -1:
                raise OSError(self._error, os.strerror(self._error))


class Filesystem:
    """A base file system: at 0 its UUID, at 40 its size once it grew, at 64 the content of its file `id`."""

    name = "ext4"

    def __init__(self, steps: Steps | None = None) -> None:
        self.steps = steps or Steps()
        self.grow_errors: list[Exception] = []

    def make(self, device: BlockDevice, uuid: str) -> None:
        self.steps.step("mkfs")
        device.pwrite(0, uuid.encode())

    def empty_bytes(self, size_bytes: int, block_bytes: int) -> int:
        return block_bytes

    def grow(self, device: BlockDevice) -> None:
        self.steps.step("grow")
        device.pwrite(PAGE, b"new tables")
        if self.grow_errors:
            raise self.grow_errors.pop(0)
        device.pwrite(0, device.pread(0, 36).ljust(40) + str(device.size_bytes).encode())

    def identify(self, device: BlockDevice) -> Identity:
        uuid = self.read_uuid(device)
        if uuid not in UUIDS:
            raise FilesystemError("there is no file system")
        size = device.pread(40, 24).rstrip(b"\0")
        name = device.pread(64, 256).rstrip(b"\0").decode()
        return Identity(uuid, int(size or MIB), name or None, not name)

    def read_uuid(self, device: BlockDevice) -> str:
        return device.pread(0, 36).decode(errors="replace")


class FakeState:
    """One pool: thins as pages by number, volatile and as last committed."""

    def __init__(self) -> None:
        self.transaction_id = 0
        self.thins: dict[int, dict[int, bytes]] = {}
        self.committed: dict[int, dict[int, bytes]] = {}

    def copy(self) -> FakeState:
        """Another one with what is in this one now, all of it durable."""
        copy = FakeState()
        copy.transaction_id = self.transaction_id
        copy.thins = {thin_id: dict(pages) for thin_id, pages in self.thins.items()}
        copy.commit()
        return copy

    def commit(self) -> None:
        self.committed = {thin_id: dict(pages) for thin_id, pages in self.thins.items()}


class FakeBackend:
    """Pools that live as long as this object. `fail` maps a message's beginning to the errors of its next sends."""

    name = "fake"
    capabilities = Capability.UNPRIVILEGED

    def __init__(self) -> None:
        self.states: dict[str, FakeState] = {}
        self.steps = Steps()
        self.fail: dict[str, list[Exception | None]] = {}
        self.status_errors: list[Exception] = []
        self.condition: dict[str, Any] = {}  # fields of the status that are other than usual
        self.unreadable: UnreadableStatus | None = None
        self.pool: FakePool | None = None
        self.events: list[str] = []

    def probe(self) -> ProbeResult:
        return ProbeResult(usable=True)

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> FakePool:
        with open(table.metadata_device, "r+b") as file:
            fresh = not any(file.read(PAGE))
            if fresh:
                self.steps.step("format")
                self.states[table.metadata_device] = FakeState()
                blocks = table.length_sectors // table.block_sectors
                superblock = Superblock(table.block_sectors, 512, data_space_map=SpaceMapRoot(nr_blocks=blocks))
                file.seek(0)
                file.write(superblock.pack())
        self.pool = FakePool(self, name, table, self.states[table.metadata_device])
        return self.pool

    def meet(self, text: str) -> None:
        """Fail where that was asked for, before anything is done."""
        for beginning, errors in self.fail.items():
            if text.startswith(beginning) and errors:
                error = errors.pop(0)
                if error is not None:
                    raise error

    def crash(self) -> None:
        """What no commit had made durable is lost."""
        for state in self.states.values():
            state.thins = {thin_id: dict(pages) for thin_id, pages in state.committed.items()}


class FakePool:
    def __init__(self, backend: FakeBackend, name: str, table: PoolTable, state: FakeState) -> None:
        self.backend, self.name, self._table, self.state = backend, name, table, state
        self.block_bytes = table.block_sectors * 512
        self.event_counter = 0
        self.no_space_timeout_seconds = 60.0
        self._active: dict[str, FakeThin] = {}
        self._loaded = table

    def _send(self, text: str) -> None:
        self.backend.steps.step(text)
        self.backend.events.append(text)
        self.backend.meet(text)

    def create_thin(self, thin_id: int) -> None:
        self._send(f"create_thin {thin_id}")
        if thin_id in self.state.thins:
            raise ThinExists(f"thin {thin_id} exists")
        self.state.thins[thin_id] = {}
        self.state.commit()

    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self._send(f"create_snap {thin_id} {origin_id}")
        if thin_id in self.state.thins:
            raise ThinExists(f"thin {thin_id} exists")
        if origin_id not in self.state.thins:
            raise NoSuchThin(f"no thin {origin_id}")
        self.state.thins[thin_id] = dict(self.state.thins[origin_id])
        self.state.commit()

    def delete(self, thin_id: int) -> None:
        self._send(f"delete {thin_id}")
        if thin_id not in self.state.thins:
            raise NoSuchThin(f"no thin {thin_id}")
        if any(thin.thin_id == thin_id for thin in self._active.values()):
            raise ThinBusy(f"thin {thin_id} is active")
        del self.state.thins[thin_id]
        self.state.commit()

    def set_transaction_id(self, old: int, new: int) -> None:
        self._send(f"set_transaction_id {old} {new}")
        if old != self.state.transaction_id:
            raise InvalidRequest(f"the id is {self.state.transaction_id}, not {old}")
        self.state.transaction_id = new
        self.state.commit()

    def reserve_metadata_snap(self) -> None:
        raise NotImplementedError

    release_metadata_snap = reserve_metadata_snap

    def message(self, text: str) -> None:
        raise NotImplementedError(text)

    def status(self, *, flush: bool = True) -> PoolStatus | UnreadableStatus:
        if self.backend.status_errors:
            raise self.backend.status_errors.pop(0)
        if self.backend.unreadable is not None:
            return self.backend.unreadable
        total = self._table.data_blocks
        usual = PoolStatus(
            transaction_id=self.state.transaction_id,
            used_metadata_blocks=60,  # type: ignore[arg-type]
            total_metadata_blocks=os.path.getsize(self._table.metadata_device) // PAGE,  # type: ignore[arg-type]
            used_data_blocks=min(total, len(self.state.thins)),  # type: ignore[arg-type]
            total_data_blocks=total,
            held_root=None,
            mode=PoolMode.WRITE,
            discard=DiscardMode.PASSDOWN,
            no_space=NoSpacePolicy.ERROR if self._table.error_if_no_space else NoSpacePolicy.QUEUE,
            needs_check=False,
            metadata_low_water=128,  # type: ignore[arg-type]
        )
        return msgspec.structs.replace(usual, **self.backend.condition)

    def table(self) -> PoolTable:
        return self._table

    def thin_ids(self) -> list[int]:
        if self.backend.unreadable is not None:
            raise PoolIoError("the pool has failed")
        return sorted(self.state.thins)

    def thin_status(self, thin_id: int) -> ThinStatus | UnreadableStatus:
        if self.backend.unreadable is not None:
            return self.backend.unreadable
        if thin_id not in self.state.thins:
            raise NoSuchThin(f"no thin {thin_id}")
        return ThinStatus(128 * bool(self.state.thins[thin_id]), None)  # type: ignore[arg-type]

    def activate(
        self,
        name: str,
        thin_id: int,
        length_sectors: int,
        *,
        read_only: bool = False,
        external_origin: str | None = None,
    ) -> FakeThin:
        if thin_id not in self.state.thins:
            raise NoSuchThin(f"no thin {thin_id}")
        if name in self._active:
            raise InvalidRequest(f"{name} is in use")
        self._active[name] = thin = FakeThin(self, name, thin_id, length_sectors * 512)
        return thin

    def active(self) -> list[FakeThin]:
        return list(self._active.values())

    def deactivate(self, thin: FakeThin) -> None:
        self._active.pop(thin.name, None)

    def commit(self) -> None:
        self.state.commit()

    def open_metadata(self) -> BlockDevice:
        return MemoryDevice(PAGE)

    def close(self) -> None:
        if not self.backend.steps.is_dead:
            self._active.clear()
            self.state.commit()

    def reload(self, table: PoolTable) -> None:
        self._loaded = table

    def resume(self) -> None:
        self._send(f"resume {self._loaded.data_blocks}")
        self._table = self._loaded
        if self.backend.condition.get("mode") is PoolMode.OUT_OF_METADATA_SPACE:
            self.backend.condition.clear()

    def suspend(self) -> None:
        raise NotImplementedError

    tick = suspend

    def extra_space_wait_seconds(self) -> float:
        return 0


class FakeThin:
    def __init__(self, pool: FakePool, name: str, thin_id: int, size_bytes: int) -> None:
        self.pool, self.name, self.thin_id, self.size_bytes = pool, name, thin_id, size_bytes
        self.block_bytes = pool.block_bytes

    def pwrite(self, offset: int, data: Any) -> None:
        assert offset % PAGE == 0
        self.pool.backend.steps.step("thin write")
        self.pool.state.thins[self.thin_id][offset // PAGE] = bytes(data).ljust(PAGE, b"\0")

    def pread(self, offset: int, length: int) -> bytes:
        page = self.pool.state.thins[self.thin_id].get(offset // PAGE, bytes(PAGE))
        return page[offset % PAGE : offset % PAGE + length]

    def flush(self) -> None:
        self.pool.backend.steps.step("thin flush")
        self.pool.backend.events.append(f"flush {self.thin_id}")
        self.pool.state.commit()

    def suspend(self) -> None:
        self.pool.backend.events.append(f"suspend {self.thin_id}")

    def resume(self) -> None:
        self.pool.backend.events.append(f"resume {self.thin_id}")

    def close(self) -> None:
        self.pool.backend.meet("close")
        self.pool.deactivate(self)

    def discard(self, offset: int, length: int) -> None:
        raise NotImplementedError

    zero = discard

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        raise NotImplementedError

    def status(self, *, flush: bool = True) -> ThinStatus | UnreadableStatus:
        return self.pool.thin_status(self.thin_id)

    def table(self) -> ThinTable:
        raise NotImplementedError

    def resize(self, length_sectors: int) -> None:
        raise NotImplementedError

    def extents(self, begin_vblock: int = 0, end_vblock: int | None = None) -> Iterator[Any]:
        raise NotImplementedError


_DOORS = set(Injected.__struct_fields__)


def uuids() -> Callable[[], str]:
    """UUIDs that a test can repeat."""
    return iter(UUIDS * 100).__next__


def make_home(
    home: Path, backend: Any, options: HomeOptions = SMALL, *, progress: opening.Progress | None = None, **doors: Any
) -> DeviceSet:
    """As `opening.make_home`; `doors` are those of `Injected`."""
    return opening.make_home(home, backend, options, progress=progress, injected=_injected(doors))


def open_home(home: Path, backend: Any, **arguments: Any) -> DeviceSet:
    """As `opening.open_home`; the arguments are those of `OpenOptions` and of `Injected`."""
    arguments.setdefault("durable", "system" in arguments)
    doors = {key: arguments.pop(key) for key in _DOORS & set(arguments)}
    return opening.open_home(home, backend, opening.OpenOptions(**arguments), injected=_injected(doors))


def _injected(doors: dict[str, Any]) -> Injected:
    return Injected(**{"filesystem": Filesystem(), "new_uuid": uuids(), **doors})


def fill_metadata(devices: DeviceSet) -> None:
    """Make devices in a `ROOMY` home until there is no metadata for more."""
    with suppress(PoolError):
        for number in range(1000):
            devices.create(f"d{number}")
            thin = devices.active.activate(f"d{number}")
            thin.pwrite(number * PAGE, b"x")
            devices.active.deactivate(f"d{number}")


def names(devices: DeviceSet) -> list[str]:
    return [record.name for record in devices.records()]


def assert_whole(devices: DeviceSet) -> None:
    """Every record has its thin, every thin its record, and no two share one."""
    ids = [record.device_id for record in devices.records()]
    assert sorted(ids) == devices.pool.thin_ids(), (devices.records(), devices.pool.thin_ids())
    assert devices.reports.status().orphan_thin_ids == []


def record_files(home: Path) -> list[str]:
    special = ("deviceset-metadata", "transaction-metadata")
    return sorted(
        path.name for path in (home / "metadata").iterdir() if path.name not in special and path.name[0] != "."
    )


@contextmanager
def killed() -> Iterator[None]:
    """The block dies at some step, or ends because it had fewer."""
    with suppress(Killed):
        yield
