"""Devices in use: counted activation, and holding one still for a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from cowfs.devices.on_disk.records import DeviceFile
from cowfs.errors import DeviceBusy, NoSuchThin, ThinBusy, UsageError
from cowfs.pool import Pool, ThinDevice
from cowfs.units import SECTOR_BYTES

Quiescer: TypeAlias = Callable[[], AbstractContextManager[object]]
_MAX_DM_NAME_BYTES: Final = 127


@dataclass(slots=True)
class _Active:
    thin: ThinDevice
    count: int
    read_only: bool


class ActiveDevices:
    """What is active of one home, by device name. All users of a device share one disk and one mode.

    Args:
        prefix: stands before the device's name in its name as a target.
    """

    def __init__(self, pool: Pool, prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix
        self._active: dict[str, _Active] = {}
        self._quiescers: dict[str, list[Quiescer]] = {}

    def open_thin(self, name: str, record: DeviceFile, read_only: bool) -> ThinDevice:
        """Activate a device for its caller alone, uncounted."""
        length_sectors = record.size // SECTOR_BYTES
        try:
            return self._pool.activate(self.target_name(name), record.device_id, length_sectors, read_only=read_only)
        except ThinBusy as error:
            raise DeviceBusy(f"device {name!r} cannot be activated: {error}") from error
        except NoSuchThin as error:
            raise NoSuchThin(
                f"device {name!r} cannot be activated: its thin {record.device_id} is not in pool {self._pool.name}"
            ) from error

    def activate(self, name: str, record: DeviceFile, *, read_only: bool) -> ThinDevice:
        active = self._active.get(name)
        if active is None:
            active = self._active[name] = _Active(self.open_thin(name, record, read_only), 0, read_only)
        elif active.read_only != read_only:
            mode = "read-only" if active.read_only else "for writing"
            raise DeviceBusy(f"device {name!r} (thin {record.device_id}) is active {mode}; deactivate it first")
        active.count += 1
        return active.thin

    def deactivate(self, name: str) -> bool:
        """Take back one activation; whether it was the last, which flushes and closes the device.

        Raises ThinBusy when something else uses its node; it then stays active, with one user.
        """
        active = self._active.get(name)
        if active is None:
            raise UsageError(f"device {name!r} is not active, so it cannot be deactivated")
        if active.count > 1:
            active.count -= 1
            return False
        try:
            _close(active)
        except ThinBusy:
            raise
        except BaseException:
            del self._active[name]
            raise
        del self._active[name]
        return True

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

    def add_quiescer(self, name: str, quiescer: Quiescer) -> Callable[[], None]:
        hooks = self._quiescers.setdefault(name, [])
        hooks.append(quiescer)

        def remove() -> None:
            with suppress(ValueError):
                hooks.remove(quiescer)

        return remove

    @contextmanager
    def all_quiesced(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in list(self._active):
                stack.enter_context(self.quiesced(name))
            yield

    @contextmanager
    def quiesced(self, name: str) -> Iterator[None]:
        active = self._active.get(name)
        if active is None:
            yield
            return
        if not active.read_only:
            active.thin.flush()  # the bulk of the work, while its users still go on
        with ExitStack() as stack:
            for quiescer in list(self._quiescers.get(name, ())):
                stack.enter_context(quiescer())
            active.thin.suspend()
            stack.callback(active.thin.resume)
            yield

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
