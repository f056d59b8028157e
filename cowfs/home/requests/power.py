"""A power cut of one device, for tests of programs that must survive one."""

from __future__ import annotations

import random

import msgspec

from cowfs.devices.uses import require_files
from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Replaced, Request
from cowfs.recording.unsynced import Unsynced


class PowerCut(msgspec.Struct, frozen=True):
    """A device after a power cut: how many bytes of writes to its disk are lost."""

    name: str
    lost_bytes: int


class WatchUnsynced(Request[None], frozen=True, tag="watch_unsynced"):
    """See `cowfs.Home.watch_unsynced`."""

    name: str

    reopens = "name"

    def run(self, home: OpenHome) -> None:
        name = home.devices.record(self.name).name
        require_files(name, home.devices.uses.of(name), "a power cut")
        if name in home.devices.active.thins():
            raise home.devices.uses.busy(name, "watched")
        home.volumes.unsynced[name] = Unsynced()


class PowerOff(Request[None], frozen=True, tag="power_off"):
    """Note that the power of a device that is watched fails now; `power_on` follows.

    Raises:
        UnknownDevice; UsageError: it is not watched.
    """

    name: str

    def run(self, home: OpenHome) -> None:
        _unsynced_of(home, self.name).power_off()


class PowerOn(Request[PowerCut], frozen=True, tag="power_on"):
    """Have a device hold what its disk would hold, in the mount too; what is open in it is detached, and gets ESTALE.

    Args:
        seed: has some of what was written since the last flush on the disk; none of it is there without.

    Raises:
        UnknownDevice; UsageError: its power has not failed.
        DeviceBusy: it is mounted by the kernel, as a layer, or open as a disk.
    """

    name: str
    seed: int | None = None

    def check(self, home: OpenHome) -> None:
        if not _unsynced_of(home, self.name).is_off:
            raise UsageError(f"the power of the device '{self.name}' has not failed, so it cannot come back")
        home.volumes.require_no_disk(self.name, "without power")

    def device_replaced(self) -> Replaced:
        return Replaced(self.name, force=True)

    def run(self, home: OpenHome) -> PowerCut:
        home.require_idle(self.name, "without power")
        rng = None if self.seed is None else random.Random(self.seed)  # noqa: S311
        with home.devices.replacing(self.name) as disk:  # so that nothing that is open reaches the new content
            lost_bytes = _unsynced_of(home, self.name).power_on(disk, rng)
        return PowerCut(self.name, lost_bytes)


def _unsynced_of(home: OpenHome, name: str) -> Unsynced:
    record = home.devices.record(name)
    unsynced = home.volumes.unsynced.get(record.name)
    if unsynced is None:
        require_files(record.name, home.devices.uses.of(record.name), "a power cut")
        raise UsageError(
            f"what the device '{record.name}' has not synced is not known; call Home.watch_unsynced before"
        )
    return unsynced
