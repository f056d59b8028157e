"""Homes that can be brought back to a moment, and whose process dies at a chosen step: on a fake pool and a real one.

A step is whatever changes something outside the process: an operation on the home's files, a message of the fake pool,
or, for the emulated one, a write, discard or flush of one of its two files. A write that is killed is half done. With a
power cut, what no fsync or flush had made durable is undone too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowfs.blockdev import BlockDevice, FileDevice, copy_sparse, data_ranges
from cowfs.devices.deviceset import DeviceSet
from cowfs.pool import Backend, load_backend
from cowfs.testing.judges import recount_findings
from tests.devices.home_fakes import (
    MIB,
    PAGE,
    DyingOs,
    FakeBackend,
    FakeState,
    Filesystem,
    Killed,
    Steps,
    assert_whole,
    killed,
    make_home,
    open_home,
    record_files,
)

Change = Callable[[DeviceSet], object]
Contents = dict[str, tuple[int, bytes]]


class World:
    """A home that is not made yet."""

    name = ""

    def __init__(self, home: Path) -> None:
        self.home = home

    def fill(self) -> None:
        """Make the devices a and b, b being a snapshot of a as it was when it was empty."""
        with make_home(self.home, self.backend()) as devices:
            devices.create("a")
            devices.create("b", parent="a")
            devices.active.activate("a").pwrite(0, b"written to a".ljust(36))
            devices.active.deactivate("a")

    def backend(self) -> Any:
        """For a process that lives on."""
        raise NotImplementedError

    def save(self, where: Path) -> Path:
        return shutil.copytree(self.home, where, symlinks=True, copy_function=_copy)

    def digest(self) -> bytes:
        """The same for homes that are the same to the byte: what was tried with one need not be tried with another."""
        found = hashlib.blake2b()
        for path in sorted(self.home.rglob("*")):
            found.update(os.fsencode(path))
            if path.is_file():
                device = FileDevice(path, read_only=True)
                found.update(b" %d" % device.size_bytes)
                for begin, end in data_ranges(device):
                    found.update(b" %d " % begin + device.pread(begin, end - begin))
                device.close()
        return found.digest()

    def restore(self, saved: Path) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(saved, self.home, symlinks=True, copy_function=_copy)

    def open(self, **arguments: Any) -> DeviceSet:
        return open_home(self.home, self.backend(), **arguments)

    def contents(self) -> Contents:
        """Size and first page of each device, all parents, the pool's sizes and policy; the whole home is looked at."""
        with self.open() as devices:
            return self.contents_of(devices)

    def contents_of(self, devices: DeviceSet) -> Contents:
        assert_whole(devices)
        assert devices.problems == ()
        found = {}
        for record in devices.records():
            thin = devices.active.activate(record.name, read_only=True)
            found[record.name] = record.size_bytes, thin.pread(0, PAGE).rstrip(b"\0")
            devices.active.deactivate(record.name)
        assert sorted(found) == record_files(self.home)
        assert not list((self.home / "cowfs.replacing").glob("[!.]*"))
        assert not (self.home / "cowfs.renaming").exists()
        assert not (self.home / "cowfs.importing").exists()
        found["parents"] = 0, repr({record.name: record.parent for record in devices.records()}).encode()
        status = devices.reports.status()
        self.judge(devices)
        found["no space"] = 0, status.no_space.encode()
        return found | {"data": (status.data_total_bytes, b""), "metadata": (status.metadata_total_bytes, b"")}

    def judge(self, devices: DeviceSet) -> None:
        """Look at the pool."""

    def run_until(self, die_at: int, change: Change, *, power_cut: bool, **arguments: Any) -> bool:
        """Run a change that dies at a step; whether it died. The first steps are those of the opening itself."""

        def open_and_change(**where: Any) -> None:
            devices = open_home(self.home, **where, **arguments)
            change(devices)
            devices.close()

        return self.dies(die_at, open_and_change, power_cut=power_cut)

    def dies(self, die_at: int, act: Callable[..., object], *, power_cut: bool) -> bool:
        """Call something with `backend`, `system` and `filesystem`; whether it died."""
        steps = Steps(die_at)
        system = DyingOs(steps, power_cut=power_cut)
        backend, lose_power = self.dying(steps, power_cut)
        with killed():
            act(backend=backend, system=system, filesystem=Filesystem(steps))
        if not steps.is_dead:
            return False
        system.lose_power()
        lose_power()
        self._close_files()
        return True

    def dying(self, steps: Steps, power_cut: bool) -> tuple[Any, Callable[[], None]]:
        """A backend that dies, and what makes its pool lose what was not durable."""
        raise NotImplementedError

    def _close_files(self) -> None:
        """A killed process has no open files, nor the locks on them."""
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self.home}/"):
                    os.close(int(fd))
            except FileNotFoundError:
                continue


class FakeWorld(World):
    """On a pool of dicts, each of whose messages is one step."""

    name = "fake"

    def __init__(self, home: Path) -> None:
        self._backend = FakeBackend()
        self._saved: dict[Path, FakeState] = {}
        super().__init__(home)

    def backend(self) -> FakeBackend:
        self._backend.steps = Steps()
        return self._backend

    @property
    def _key(self) -> str:
        return str(self.home / "devicemapper/metadata")

    def digest(self) -> bytes:
        return super().digest() + repr(vars(self._backend.states[self._key])).encode()

    def save(self, where: Path) -> Path:
        self._saved[where] = self._backend.states[self._key].copy()
        return super().save(where)

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        self._backend = FakeBackend()
        self._backend.states[self._key] = self._saved[saved].copy()

    def dying(self, steps: Steps, power_cut: bool) -> tuple[FakeBackend, Callable[[], None]]:
        self._backend.steps = steps
        return self._backend, self._backend.crash


class EmulatedWorld(World):
    """On the emulated pool, each operation on whose files is one step."""

    name = "emulated"

    def backend(self) -> Backend:
        return load_backend("emulated")

    def judge(self, devices: DeviceSet) -> None:
        device = devices.pool.open_metadata()
        assert recount_findings(device, strict=True) == []
        device.close()

    def dying(self, steps: Steps, power_cut: bool) -> tuple[Backend, Callable[[], None]]:
        disks: list[DyingDisk] = []

        def wrap(role: str, device: BlockDevice) -> BlockDevice:
            assert isinstance(device, FileDevice)
            disks.append(DyingDisk(device, steps, role, power_cut=power_cut))
            return disks[-1]

        def lose_power() -> None:
            for disk in disks:
                disk.lose_power()

        backend: Any = load_backend("emulated")
        return backend.for_tests(clock=lambda: 0.0, no_space_timeout_seconds=60, wrap_device=wrap), lose_power


class DyingDisk:
    """A file of a pool. Every change of it is a step, and so is every flush."""

    def __init__(self, inner: FileDevice, steps: Steps, role: str, *, power_cut: bool) -> None:
        self._inner = inner
        self._steps = steps
        self._role = role
        self._undo: list[tuple[int, bytes]] | None = [] if power_cut else None
        self.pread = inner.pread
        self.refresh_size = inner.refresh_size
        self.close = inner.close

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def _change(self, what: str, offset: int, length: int, change: Callable[[], object]) -> None:
        if self._undo is not None:
            self._undo.append((offset, self._inner.pread(offset, length)))
        self._steps.step(f"{what} {self._role}")
        change()

    def pwrite(self, offset: int, data: Any) -> None:
        was_alive = not self._steps.is_dead
        try:
            self._change("write", offset, len(data), lambda: self._inner.pwrite(offset, data))
        except Killed:
            if was_alive:
                self._inner.pwrite(offset, bytes(data)[: len(data) // 2])
            raise

    def zero(self, offset: int, length: int) -> None:
        self._change("zero", offset, length, lambda: self._inner.zero(offset, length))

    def discard(self, offset: int, length: int) -> None:
        self._change("discard", offset, length, lambda: self._inner.discard(offset, length))

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self._change("copy", target_offset, length, lambda: self._inner.copy(source_offset, target_offset, length))

    def flush(self) -> None:
        self._steps.step(f"flush {self._role}")  # which is all: this machine does not lose its power
        if self._undo is not None:
            self._undo.clear()

    def lose_power(self) -> None:
        """Take back what was not flushed."""
        if self._undo:
            with open(self._inner.path, "r+b") as file:
                for offset, data in reversed(self._undo):
                    file.seek(offset)
                    file.write(data)


def _copy(source: str, target: str) -> None:
    """A file, without its holes."""
    device = FileDevice(source, read_only=True)
    with open(target, "wb") as file:
        copy_sparse(device, file.fileno())
    device.close()


# Changes of a home that a world made: b is a snapshot of a, as it was when it was empty.


def create(devices: DeviceSet) -> None:
    devices.create("new", parent="a")


def create_from_active(devices: DeviceSet) -> None:
    devices.active.activate("a")
    devices.create("new", parent="a")


def remove(devices: DeviceSet) -> None:
    devices.remove("b")


def rename(devices: DeviceSet) -> None:
    devices.rename("a", "renamed")


def roll_back(devices: DeviceSet) -> None:
    devices.roll_back("a", "b")


def roll_back_keeping(devices: DeviceSet) -> None:
    devices.roll_back("b", "a", keep="kept")


def roll_back_to_active_of_another_size(devices: DeviceSet) -> None:
    devices.active.activate("larger")
    devices.roll_back("a", "larger", keep="kept")


def create_many(devices: DeviceSet) -> None:
    devices.create_many(["new1", "new2", "new3"], parent="a")


def create_many_larger(devices: DeviceSet) -> None:
    devices.create_many(["new1", "new2"], parent="a", size_bytes=2 * MIB)


def deferred_remove(devices: DeviceSet) -> None:
    devices.active.activate("b")
    devices.remove("b", deferred=True)
    devices.active.deactivate("b")


def replace(devices: DeviceSet) -> None:
    with devices.replacing("a") as thin:
        thin.pwrite(0, b"new content of a".ljust(36))
        thin.pwrite(PAGE, b"more of it")


def import_disk(devices: DeviceSet) -> None:
    with devices.imports.importing("new", MIB) as thin:
        thin.pwrite(0, b"brought in".ljust(36))
        thin.pwrite(PAGE, b"more of it")


def import_files(devices: DeviceSet) -> None:
    with devices.imports.importing("new", None, origin="a") as thin:
        thin.pwrite(0, b"brought in".ljust(36))


def import_chain(devices: DeviceSet) -> None:
    with devices.imports.importing_together() as new:
        new.begin("new1", MIB).pwrite(0, b"brought in".ljust(36))
        new.begin("new2", 2 * MIB, origin="new1", parent="new1").pwrite(0, b"other".ljust(36))


def create_larger(devices: DeviceSet) -> None:
    devices.create("new", parent="a", size_bytes=2 * MIB)


def resize(devices: DeviceSet) -> None:
    devices.resize("a", 3 * MIB)
