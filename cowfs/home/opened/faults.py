"""The faults of an open home: rules, put where the home's devices, its pool and its mount meet them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from cowfs.blockdev import BlockDevice
from cowfs.devices.deviceset import DeviceSet
from cowfs.errors import CowfsError, UsageError
from cowfs.faults.disk import FaultyDevice, as_pool_error
from cowfs.faults.effects import Means
from cowfs.faults.plan import NoSpace, Place, PoolMode, PoolModeName, Rule
from cowfs.faults.rules import FaultReport, FaultSet
from cowfs.home.kernel.faults import as_disk_fault
from cowfs.home.opened.stand_ins import StandIns
from cowfs.in_place import Make, put_in_place
from cowfs.pool import BreakablePool, DiskFault, LayeredPool
from cowfs.pool import PoolMode as Mode

if TYPE_CHECKING:
    from cowfs.faults.requests import FaultyRequests
    from cowfs.fuse.translate import View

_log = logging.getLogger(__name__)
_MODES: Final[dict[PoolModeName, Mode]] = {
    "read_only": Mode.READ_ONLY,
    "needs_check": Mode.READ_ONLY,
    "out_of_data_space": Mode.OUT_OF_DATA_SPACE,
    "out_of_metadata_space": Mode.OUT_OF_METADATA_SPACE,
    "failed": Mode.FAIL,
}


class HomeFaults:
    """Rules in force, and what replaces methods while there are any.

    Nothing does while there are no rules: each use of a device or a request is then what it was before.
    """

    def __init__(self, devices: DeviceSet, stand_ins: StandIns) -> None:
        self.rules = FaultSet()
        self._devices = devices
        self._stand_ins = stand_ins
        self._means = Means(change_pool=self._change_pool)
        self._below: dict[str, Callable[[], None]] = {}  # the pool's devices; what takes a faulty one back
        self._requests: FaultyRequests | None = None
        self._in_kernel: list[DiskFault] = []

    def show(self, view: View, device: str | None) -> None:
        """Say what the mount of the home shows: one device, or all of them."""
        from cowfs.faults.requests import FaultyRequests

        self._requests = FaultyRequests(view, device, self.rules, self._means)
        self._put_in_place()

    def add(self, rules: Sequence[Rule], *, before_mount: bool = False) -> list[FaultReport]:
        """Put rules in force, all of them or none.

        Args:
            before_mount: the home is about to be shown.

        Raises:
            UsageError: one is wrong, has a name that is taken, or cannot be met here.
        """
        for rule in rules:
            self._require_possible(rule)
            if rule.on == "files" and self._requests is None and not before_mount:
                raise UsageError(
                    f"fault '{rule.name or rule.effect.kind}': 'files' are the requests of a mount, and the process "
                    f"that has the home {self._devices.home} serves none; mount it first, or use 'device'"
                )
        added = self.rules.add(rules)
        try:
            self._put_in_place()
        except CowfsError as error:
            self.rules.clear([active.name for active in added])
            names = ", ".join(f"'{active.name}'" for active in added)
            raise UsageError(f"the faults {names} cannot be put in force: {error}", errno=error.errno) from error
        for active in added:
            _log.info("fault '%s' is in force: %s on %s", active.name, active.rule.effect.kind, active.rule.on)
        return [active.report() for active in added]

    def clear(self, names: Sequence[str]) -> list[FaultReport]:
        """Take rules out of force, all of them when none is named. Raises UsageError: there is no such rule."""
        cleared = self.rules.clear(names)
        self._put_in_place()
        for active in cleared:
            _log.info("fault '%s' is cleared; it was met %d times", active.name, active.hits)
        return [active.report() for active in cleared]

    def _require_possible(self, rule: Rule) -> None:
        needs_pool = rule.on in ("data", "metadata", "commit") or isinstance(rule.effect, PoolMode)
        needs_pool = needs_pool or (isinstance(rule.effect, NoSpace) and rule.effect.of == "metadata")
        pool = self._devices.pool
        if rule.on in ("data", "metadata") and isinstance(pool, LayeredPool):
            as_disk_fault(rule, pool.block_bytes)
        elif needs_pool and not isinstance(pool, BreakablePool):
            what = f"'{rule.on}'" if rule.on in ("data", "metadata", "commit") else f"'{rule.effect.kind}'"
            raise UsageError(
                f"fault '{rule.name or rule.effect.kind}': {what} is not possible in the home {self._devices.home}, "
                "whose pool runs in the kernel; use another place, or the backend 'emulated'"
            )

    # ------------------------------------------------------------------ in place

    def _put_in_place(self) -> None:
        """Have the devices, the pool and the view be faulty that the rules are about, and no others."""
        self._stand_ins.want("faults", self._faulty if self.rules.has("device") else None)
        self._put_below()
        if self._requests is not None:
            if self.rules.rules:
                self._requests.put_in_place()
            else:
                self._requests.take_back()

    def _faulty(self, name: str) -> Make | None:
        if not self.rules.has("device", device=name):
            return None
        return partial(
            FaultyDevice, faults=self.rules, on="device", device=name, means=self._means, failure=as_pool_error
        )

    def _put_below(self) -> None:
        pool = self._devices.pool
        if isinstance(pool, LayeredPool):
            self._put_below_the_kernels(pool)
            return
        disks: dict[str, BlockDevice] = pool.disks() if isinstance(pool, BreakablePool) else {}
        for role, disk in disks.items():
            wanted = self.rules.has("data") if role == "data" else self.rules.has("metadata", "commit")
            if wanted and role not in self._below:
                on: Place = "data" if role == "data" else "metadata"
                faulty = partial(FaultyDevice, faults=self.rules, on=on, means=self._means)
                self._below[role] = put_in_place(disk, faulty)
            elif not wanted and role in self._below:
                self._below.pop(role)()

    def _put_below_the_kernels(self, pool: LayeredPool) -> None:
        rules = [active.rule for active in self.rules.rules if active.rule.on in ("data", "metadata")]
        faults = [as_disk_fault(rule, pool.block_bytes) for rule in rules]
        if faults != self._in_kernel:
            pool.put_faults_below(faults)
            self._in_kernel = faults

    def _change_pool(self, mode: PoolModeName) -> None:
        assert isinstance(self._devices.pool, BreakablePool)
        self._devices.pool.degrade(_MODES[mode], needs_check=mode == "needs_check")
