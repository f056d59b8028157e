"""A home that this process holds, with what it shows of it: what requests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cowfs.devices.on_disk.names import BASE
from cowfs.devices.reports import DeviceUse, MountedView
from cowfs.devices.uses import require_idle
from cowfs.ending import Closing, ending_with
from cowfs.error_record import plain_text
from cowfs.forking import not_inherited
from cowfs.home.opened.stand_ins import StandIns
from cowfs.mounts.mountinfo import decode_source, mounts
from cowfs.mounts.nodes import kernel_mounts

if TYPE_CHECKING:
    from cowfs.devices.deviceset import DeviceSet
    from cowfs.devices.on_disk.records import DeviceRecord
    from cowfs.fuse.translate import View
    from cowfs.home.kernel.layers import KernelLayers
    from cowfs.home.opened.device_traces import HomeTraces
    from cowfs.home.opened.end_reports import EndReports
    from cowfs.home.opened.faults import HomeFaults
    from cowfs.home.opened.virtual_clock import VirtualClock
    from cowfs.layers import IdMaps
    from cowfs.layers.driver import LayerDriver, Mounter
    from cowfs.layers.options import Settings
    from cowfs.volumes import Volumes


class OpenHome(Closing):
    """A home held by this process: its device set, its layers, the views mounted from it.

    Attributes:
        is_serving: whether other processes are served.
        clock: the pool's, if it is one that tests move.
        end_reports: where a process that only serves one mount tells how it ends.
    """

    def __init__(
        self, devices: DeviceSet, backend: str, settings: Settings | None = None, clock: VirtualClock | None = None
    ) -> None:
        self.devices = devices
        self.backend = backend
        self.clock = clock
        self._settings = settings
        self.is_serving = False
        self.end_reports: EndReports | None = None
        self.views: list[MountedView] = []
        self._stand_ins = StandIns(devices.active)
        self._faults: HomeFaults | None = None
        self._traces: HomeTraces | None = None
        self._shown: tuple[View, str | None] | None = None
        self._volumes: Volumes | None = None
        self._driver: LayerDriver | None = None
        not_inherited(self, f"the home {devices.home}")

    @property
    def path(self) -> Path:
        return self.devices.home

    @property
    def settings(self) -> Settings:
        """Of the layer driver, as the storage options say; worked out at the first use where there are none."""
        if self._settings is None:
            from cowfs.home.opened.storage_options import resolve_settings
            from cowfs.layers.options import DriverOptions

            self._settings = resolve_settings(self.backend, DriverOptions())
        return self._settings

    @property
    def volumes(self) -> Volumes:
        """The open volumes of the home, shared by all their users."""
        return self._volumes or self.use_volumes()

    def use_volumes(self, *, read_only: bool = False) -> Volumes:
        """Make the volumes of the home; `read_only` ones change nothing. Before anything else needs them."""
        from cowfs.volumes import Volumes

        assert self._volumes is None
        self._volumes = Volumes(self.devices, read_only=read_only)
        return self._volumes

    @property
    def faults(self) -> HomeFaults:
        """The faults of the home, made by its first use: a home without any knows nothing of them."""
        if self._faults is None:
            from cowfs.home.opened.faults import HomeFaults

            self._faults = HomeFaults(self.devices, self._stand_ins)
            if self._shown is not None:
                self._faults.show(*self._shown)
        return self._faults

    @property
    def traces(self) -> HomeTraces:
        """The traces that are being recorded, made by its first use."""
        if self._traces is None:
            from cowfs.home.opened.device_traces import HomeTraces

            self._traces = HomeTraces(self.devices, self._stand_ins)
        return self._traces

    def show(self, view: View, device: str | None) -> None:
        """Note what the mount of the home shows: one device, or all of them."""
        self._shown = view, device
        self._stand_ins.show(view)
        if self._faults is not None:
            self._faults.show(view, device)

    @property
    def fault_count(self) -> int:
        """How many rules of faults are in force."""
        return 0 if self._faults is None else len(self._faults.rules.rules)

    @property
    def driver(self) -> LayerDriver:
        """The home as a storage driver has it."""
        return self._driver or self.use_driver(self.settings)

    def use_driver(
        self,
        settings: Settings,
        maps: IdMaps | None = None,
        mounter: Mounter | None = None,
        *,
        keep_root_owner: bool = False,
    ) -> LayerDriver:
        """Use a driver with these settings from now on; layers that an earlier one had mounted are put.

        Args:
            mounter: shows the files of layers; the kernel when None, where it can, and always those of xfs.
            keep_root_owner: of `LayerDriver`.
        """
        from cowfs.layers.driver import LayerDriver

        if self._driver is not None:
            self._driver.cleanup()
        self._settings = settings
        kernel = self._kernel_layers(maps)
        trees = None
        if kernel is not None and (mounter is None or self.devices.base.filesystem_name == "xfs"):
            mounter = trees = kernel
        self._driver = LayerDriver(
            self.devices,
            self.volumes,
            mounter,
            trees=trees,
            settings=settings,
            maps=maps,
            keep_root_owner=keep_root_owner,
        )
        return self._driver

    def _kernel_layers(self, maps: IdMaps | None) -> KernelLayers | None:
        """What has the kernel mount layers, where that is possible and wanted."""
        if not self.settings.kernel_mounts:
            return None
        from cowfs.home.kernel.layers import KernelLayers

        group = maps.root_group if maps else None
        return KernelLayers(self.devices, self.volumes, self.settings, group=group)

    def close(self) -> None:
        """Put the layers that are mounted here, and close the home."""
        with ending_with(self.devices.close):
            if self._driver is not None:
                self._driver.cleanup()
            if self._traces is not None:
                self._traces.close()

    # ------------------------------------------------------------------ views

    def all_views(self) -> list[MountedView]:
        """What this process shows, what the kernel does, and what other readers of a home that cannot be written do."""
        kernels = (
            MountedView(name, plain_text(mount.target), "kernel", mount.is_read_only)
            for name, mount in kernel_mounts(self.devices.active.open_nodes())
        )
        return [*self.views, *self._views_of_readers(), *kernels]

    def _views_of_readers(self) -> list[MountedView]:
        """By the table of mounts: such readers cannot be asked. It does not say whether a view is raw."""
        if not self.devices.is_shared:
            return []
        home = os.path.realpath(self.path)
        own = {view.mount_point for view in self.views}
        return [
            MountedView(
                source[1] or None, plain_text(mount.target), "tree" if source[1] else "home", mount.is_read_only
            )
            for mount in mounts()
            if mount.is_cowfs and (source := decode_source(mount.source)) is not None and source[0] == home
            if plain_text(mount.target) not in own
        ]

    def views_of(self, record: DeviceRecord, views: Sequence[MountedView] | None = None) -> list[MountedView]:
        """The views that show a device, each as if it were of that device alone.

        Args:
            views: all there are, where they are known already.
        """
        name = record.name
        views = self.all_views() if views is None else views
        shown = [view for view in views if view.device == name]
        if name != BASE and not record.deleted:
            whole = (view for view in views if view.device is None)
            shown += [MountedView(name, f"{view.mount_point}/{name}", "home", view.read_only) for view in whole]
        return shown

    # ------------------------------------------------------------------ uses

    def all_uses(self) -> list[DeviceUse]:
        """Who uses which device: this process, the kernel, and other readers of a home that cannot be written."""
        names = {record.name for record in self.devices.records()}
        return [*self.devices.uses.all(), *(use for use in self._uses_outside() if use.device in names)]

    def uses_of(self, name: str) -> list[DeviceUse]:
        """Who uses a device, the oldest use first; those without a known time come last."""
        return [*self.devices.uses.of(name), *(use for use in self._uses_outside() if use.device == name)]

    def _uses_outside(self) -> Iterator[DeviceUse]:
        """By the table of mounts, and by what the kernel has active; neither says since when."""
        for name, mount in kernel_mounts(self.devices.active.open_nodes()):
            yield DeviceUse(name, "kernel", plain_text(mount.target), None)
        yield from self.devices.active.node_uses()
        for view in self._views_of_readers():
            if view.device is not None:
                yield DeviceUse(view.device, "tree", view.mount_point, None)

    def require_idle(self, name: str, purpose: str, alternative: str = "") -> None:
        """Raises DeviceBusy for a device that is in use; a reader of a copy of it does not count."""
        uses = (use for use in self.uses_of(name) if use.kind != "reader")
        require_idle(name, uses, purpose, alternative)
